"""Child processes that never outlive their parent: started in sessions of their own, waited for, and stopped by pid.

Ctrl-C reaches the parent alone, which stops the children in order; a killed parent takes them along (`parents`).
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from farflung.apps.fork_server import ForkServer, fork_server
from farflung.apps.parents import PARENT_VARIABLE

STOP_SECONDS = 5.0
"""How long a child may take to leave before it is killed."""
LOOK_SECONDS = 0.02
LOG_LINES_SHOWN = 15

_must_end_at_once = threading.Event()


def end_at_once() -> None:
    """From now on `leave` ends this process without taking its interpreter down first.

    Threads of torch's process groups outlive `destroy_process_group`. One that lets go of a tensor while the
    interpreter ends is unwound in the middle of a destructor, and the C++ runtime aborts the whole process.
    """
    _must_end_at_once.set()


def leave(status: int) -> NoReturn:
    """End this process, all of whose work is done and closed."""
    if _must_end_at_once.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


class CommandFailed(Exception):
    """A command could not do what it promises, and not by its user's fault."""


class ChildFailed(CommandFailed):
    """A child ended or did not become ready in time; says what it last wrote."""


class Process(Protocol):
    """What is used of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


@dataclass(slots=True)
class Child:
    """One process and what it writes."""

    name: str
    process: Process
    log: Path

    def lines(self) -> list[str]:
        """What it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.status is None

    @property
    def status(self) -> int | None:
        """Its exit status, once it has ended; of a signal, its negative number."""
        return self.process.poll()

    def kill(self) -> None:
        """End it at once, without a chance to say goodbye (kill -9)."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds_max: float = STOP_SECONDS) -> None:
        """Ask it to leave, and kill it if it has not by then."""
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            self.kill()

    def signal(self, number: int) -> None:
        """Send a signal to its process group, if it still runs."""
        if self.is_running and (group := self.process.pid):  # the child leads a group of its own
            with contextlib.suppress(ProcessLookupError):  # one that a server has forked is gone before we hear of it
                os.killpg(group, number)


class Supervisor:
    """Starts children and, on leaving its `with` block, ends all that are left."""

    def __init__(self, folder: Path, server: ForkServer | None = None) -> None:
        """`folder` gets a log per child; `server` forks commands, in place of that of this process."""
        self._folder = folder
        self._server = server
        self._children: list[Child] = []

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start one process; its output goes to NAME.log."""
        log = self._folder / f"{name}.log"
        variables = {**os.environ, **environment, PARENT_VARIABLE: str(os.getpid())}
        with log.open("wb") as output:
            process = subprocess.Popen(
                list(command),
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def command(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start `farflung ARGUMENTS` as `start` does; a fork server, if there is one, does it at once."""
        server = self._server or fork_server()
        if server is None:
            return self.start(name, [sys.executable, "-m", "farflung", *arguments], environment)
        log = self._folder / f"{name}.log"
        log.write_bytes(b"")
        child = Child(name, server.start(arguments, environment, log), log)
        self._children.append(child)
        return child

    def wait_until(self, holds: Callable[[], bool], *, seconds_max: float, what: str) -> None:
        """Return once the condition holds.

        Raises:
            ChildFailed: a child ended meanwhile, or the time is over.
        """
        expected = [child for child in self._children if child.is_running]
        deadline = time.monotonic() + seconds_max
        while not holds():
            for child in expected:
                if not child.is_running:
                    raise ChildFailed(f"{child.name} ended while waiting until {what}:\n{_tail(child)}")
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {child.name}\n{_tail(child)}" for child in expected)
                raise ChildFailed(f"not within {seconds_max:g} s: {what}\n{logs}")
            time.sleep(LOOK_SECONDS)

    def check(self) -> None:
        """Do nothing while all children run.

        Raises:
            ChildFailed: one has ended.
        """
        for child in self._children:
            if not child.is_running:
                raise ChildFailed(f"{child.name} ended with status {child.status}:\n{_tail(child)}")

    def stop(self) -> None:
        """Ask all children to leave, newest first, and kill those that do not."""
        is_main = threading.current_thread() is threading.main_thread()
        # A second Ctrl-C must not leave half of them behind; this takes seconds at most.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
        try:
            for child in reversed(self._children):
                child.signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            for child in self._children:
                child.stop(max(0.0, deadline - time.monotonic()))
        finally:
            if is_main:
                signal.signal(signal.SIGINT, previous)


def _tail(child: Child) -> str:
    return "\n".join(child.lines()[-LOG_LINES_SHOWN:])
