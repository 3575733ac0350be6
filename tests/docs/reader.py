"""Plays a tutorial in a folder of its own with real processes: what a reader does, without reading."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.docs.tutorial import End, SaveFile, Step, Type, unseen

ROOT = Path(__file__).resolve().parents[2]
COMMAND_SECONDS_MAX = 840.0
READY_SECONDS_MAX = 240.0
LEAVE_SECONDS_MAX = 120.0
LOOK_SECONDS = 0.05


class Reader:
    """Has a folder and any number of terminals; `close` ends what still runs in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._terminals: dict[str, subprocess.Popen[bytes]] = {}

    def play(self, step: Step) -> None:
        """Do what one step says; AssertionError if something else is seen."""
        if isinstance(step, SaveFile):
            (self._folder / step.name).write_text(step.text, encoding="utf-8")
        elif isinstance(step, End):
            self._end(step)
        elif step.terminal:
            self._open(step)
        else:
            self._wait_for(step)

    def close(self) -> None:
        """Close all terminals."""
        for process in self._terminals.values():
            _signal(process, signal.SIGKILL)
            process.wait()
        self._terminals.clear()

    def _open(self, step: Type) -> None:
        assert step.terminal not in self._terminals, f"{step.terminal} is already in use"
        log = self._folder / f"{step.terminal}.log"
        process = self._terminals[step.terminal] = self._start(step.commands, log)
        deadline = time.monotonic() + READY_SECONDS_MAX
        while missing := unseen(step.seen, text := log.read_text(encoding="utf-8", errors="replace")):
            assert process.poll() is None, f"{step.terminal} ended with {process.returncode}:\n{step.commands}\n{text}"
            assert time.monotonic() < deadline, f"{missing!r} is not seen in {step.terminal}:\n{step.commands}\n{text}"
            time.sleep(LOOK_SECONDS)

    def _wait_for(self, step: Type) -> None:
        log = self._folder / "terminal.log"
        process = self._start(step.commands, log)
        try:
            status = process.wait(COMMAND_SECONDS_MAX)
        finally:
            _signal(process, signal.SIGKILL)
        text = log.read_text(encoding="utf-8", errors="replace")
        assert status == 0, f"status {status}:\n{step.commands}\n{text}"
        missing = unseen(step.seen, text)
        assert not missing, f"{missing!r} is not seen:\n{step.commands}\n{text}"

    def _end(self, step: End) -> None:
        process = self._terminals.pop(step.terminal)
        _signal(process, signal.SIGKILL if step.verb == "kill" else signal.SIGINT)
        status = process.wait(LEAVE_SECONDS_MAX)
        assert step.verb == "kill" or status in (0, 130), f"{step.terminal} ended with {status} after Ctrl-C"

    def _start(self, commands: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                ["bash", "-e", "-o", "pipefail", "-c", commands],
                cwd=self._folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self) -> Mapping[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"FARFLUNG_HOME": str(self._folder / "home"), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
        return {**os.environ, **own, "PATH": path, "PYTHONPATH": str(ROOT)}


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To the whole terminal, as a terminal does; nothing if all in it has ended."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
