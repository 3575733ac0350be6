"""A copy of this process that forks once for every command: what has been imported is there, so commands start at once.

    this process ── {"arguments", "variables", "log"} ──> server ── fork ──> farflung ARGUMENTS
                 <── {"started": pid}, {"ended": pid, "status"} ──

Lines of JSON over pipes. The server ends with the process that it is a copy of, and its children with it.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from farflung.apps.parents import PARENT_VARIABLE, end_with_parent

READ_BYTES = 65536
LOOK_SECONDS = 0.02
THREADS_VARIABLE = "OMP_NUM_THREADS"
"""Torch reads it when it is loaded."""
LOST_STATUS = -int(signal.SIGTERM)
"""Of children whose server is gone: the system has sent them this signal."""


class Forked:
    """A command that the server forks; has what is used of `subprocess.Popen`."""

    def __init__(self, server: "ForkServer") -> None:
        self._server = server
        self.started_pid = 0
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        """Of its process, which leads a group of its own; 0: it was never started, as the server has ended."""
        while not self.started_pid and self.poll() is None:
            time.sleep(LOOK_SECONDS)
        return self.started_pid

    def poll(self) -> int | None:
        """Its exit status, once it has ended; of a signal, its negative number."""
        if self.returncode is None:
            self._server.hear()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status.

        Raises:
            subprocess.TimeoutExpired: it has not ended by then.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("farflung", timeout or 0.0)
            time.sleep(LOOK_SECONDS)
        return status


class ForkServer:
    """The server, as seen by those that give it orders."""

    def __init__(self, orders: int, answers: int) -> None:
        """`orders` and `answers`: this side's ends of its pipes."""
        self._orders, self._answers = orders, answers
        self._unread = b""
        self._unstarted = deque[Forked]()
        self._children: dict[int, Forked] = {}
        self.is_running = True
        """Whether it can be given orders, as far as is known."""

    def start(self, arguments: Sequence[str], variables: Mapping[str, str], log: Path) -> Forked:
        """Have `farflung ARGUMENTS` started with these variables besides the server's; its output goes to `log`."""
        child = Forked(self)
        self._unstarted.append(child)
        order = {"arguments": list(arguments), "variables": dict(variables), "log": str(log.absolute())}
        with contextlib.suppress(BrokenPipeError):  # then it has ended, which `hear` will find
            os.write(self._orders, json.dumps(order).encode() + b"\n")
        return child

    def hear(self) -> None:
        """Take what it has answered, without waiting."""
        while self.is_running and select.select([self._answers], [], [], 0)[0]:
            heard = os.read(self._answers, READ_BYTES)
            if not heard:
                self._lose()
            *lines, self._unread = (self._unread + heard).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, answer: dict[str, int]) -> None:
        if "started" in answer:
            child = self._unstarted.popleft()
            child.started_pid = answer["started"]
            self._children[child.started_pid] = child
        else:
            self._children.pop(answer["ended"]).returncode = answer["status"]

    def _lose(self) -> None:
        """It has ended, and with it all its children."""
        self.is_running = False
        for child in [*self._unstarted, *self._children.values()]:
            child.returncode = LOST_STATUS


_of_this_process: list[ForkServer] = []


def fork_server() -> ForkServer | None:
    """That of this process, while there is one."""
    return next((server for server in _of_this_process if server.is_running), None)


@contextlib.contextmanager
def serving_forks(*modules: str) -> Iterator[None]:
    """Until the end of the block this process has a server, where forks are safe; imports what its commands need.

    To be entered before anything but imports: a fork copies no thread, and what the libraries of accelerators know does
    not outlive one.
    """
    if sys.platform != "linux" or _has_accelerator():
        yield
        return
    for name in modules:
        importlib.import_module(name)
    orders, answers = os.pipe(), os.pipe()
    parent, pid = os.getpid(), _fork_whole()
    if pid == 0:
        os.close(orders[1])
        os.close(answers[0])
        end_with_parent(parent)
        _end_by(lambda: serve(orders[0], answers[1]))
    os.close(orders[0])
    os.close(answers[1])
    _of_this_process.append(ForkServer(orders[1], answers[0]))
    try:
        yield
    finally:
        _of_this_process.pop()
        os.close(orders[1])
        os.waitpid(pid, 0)
        os.close(answers[0])


def _fork_whole() -> int:
    """`os.fork` with signals held back: an exception in what Python runs after a fork is lost, and Ctrl-C is one."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return os.fork()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _has_accelerator() -> bool:
    """Whether libraries of one may be at work; without torch none are."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.accelerator.is_available()


# The server


def serve(orders: int, answers: int) -> None:
    """Carry out orders until there are no more."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.collect()
    gc.freeze()  # what is there now stays, and the children share its memory
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    unread = b""
    while True:
        ready, _, _ = select.select([orders, woken], [], [])
        if woken in ready:
            os.read(woken, READ_BYTES)
            _reap(answers)
        if orders in ready:
            heard = os.read(orders, READ_BYTES)
            if not heard:
                return
            *lines, unread = (unread + heard).split(b"\n")
            for line in lines:
                _fork(json.loads(line), answers, (orders, answers, woken, waker))


def _fork(order: dict[str, object], answers: int, pipes: tuple[int, ...]) -> None:
    server, pid = os.getpid(), _fork_whole()
    if pid == 0:
        os.setpgid(0, 0)
        _end_by(lambda: _become(order, server, pipes))
    with contextlib.suppress(PermissionError, ProcessLookupError):  # it has got on so far, or has ended
        os.setpgid(pid, pid)  # whoever hears of the child may signal its group at once
    _answer(answers, started=pid)


def _become(order: dict[str, object], server: int, pipes: tuple[int, ...]) -> None:
    """In a child: the command line's own main."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for descriptor in (nothing, log, *pipes):
        os.close(descriptor)
    variables, arguments = order["variables"], order["arguments"]
    assert isinstance(variables, dict) and isinstance(arguments, list)
    os.environ.update(variables)
    os.environ[PARENT_VARIABLE] = str(server)
    if THREADS_VARIABLE in variables and "torch" in sys.modules:
        import torch

        torch.set_num_threads(int(variables[THREADS_VARIABLE]))
    sys.argv = ["farflung", *arguments]
    from farflung.apps.cli import main

    main()


def _end_by(work: Callable[[], object]) -> NoReturn:
    """Do it, and end this process, which must not come back to what its parent was about."""
    status: object = 1
    try:
        work()
        status = 0
    except SystemExit as end:
        status = 0 if end.code is None else end.code
    except BaseException:  # noqa: BLE001 - as the interpreter does at its end
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def _reap(answers: int) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _answer(answers, ended=pid, status=os.waitstatus_to_exitcode(status))


def _answer(answers: int, **answer: int) -> None:
    os.write(answers, json.dumps(answer).encode() + b"\n")
