"""A command that leads a run, as a process that tests look into."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import psutil

from farflung.apps.fork_server import ForkServer
from farflung.apps.processes import Process
from farflung.apps.runs.history import read_history
from tests.loopback.fleet import ROOT, wait_until

LEARNT_LOSS = 3.7
"""A model that has learnt nothing has 5.55."""
SECONDS_MAX = 400.0


class Command:
    """`farflung pretrain`, or a run of another kind, at work."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        kind: str = "pretrain",
        forge: ForkServer | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """With a forge, it is forked there instead of importing everything by itself."""
        self.folder = folder / "run"
        self.output = folder / "output.txt"
        variables = {
            **variables,
            "FARFLUNG_HOME": str(folder / "home"),
            "FARFLUNG_CACHE": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process: Process
        if forge is not None:
            self.output.write_bytes(b"")
            self.process = forge.start([kind, *arguments], variables, self.output)
            return
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "farflung", kind, *arguments],
                cwd=ROOT,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        """What it has printed so far, in one line."""
        return " ".join(self.output.read_text().split())

    @property
    def num_tokens(self) -> int:
        """As its log says."""
        return read_history(self.folder / "log.jsonl").num_tokens()

    def seat(self, name: str) -> psutil.Process:
        """The process that sits there now: the one that writes the seat's newest log."""
        logs = list((self.folder / "seats").glob(f"{name}-*.log"))
        newest = str(max(logs, key=lambda path: path.stat().st_mtime_ns, default="there is no log yet"))
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):  # it has just ended
                if os.readlink(f"/proc/{child.pid}/fd/1") == newest:
                    return child
        raise AssertionError(f"nobody sits on {name}")

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(SECONDS_MAX)

    def send(self, number: signal.Signals) -> None:
        """To the command alone."""
        os.kill(self.process.pid, number)

    def close(self) -> None:
        """Stop it, if it still runs."""
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
            self.process.wait(SECONDS_MAX)


def summary(folder: Path) -> dict[str, float]:
    """What the run has come to."""
    return json.loads((folder / "run" / "summary.json").read_text())


def tracebacks(command: Command) -> dict[str, str]:
    """What its seats have written in the end, by log, where that holds a traceback."""
    texts = {path.name: path.read_text() for path in (command.folder / "seats").glob("*.log")}
    return {name: text[-3000:] for name, text in texts.items() if "Traceback" in text}


def wait_trained(command: Command, num_tokens: int) -> None:
    """Wait until so many tokens are in the log, but not for a run that has ended."""

    def is_there() -> bool:
        assert command.process.poll() is None, command.output.read_text()
        return command.num_tokens >= num_tokens

    wait_until(is_there, f"{num_tokens} tokens are trained on", SECONDS_MAX)


def num_steps(command: Command) -> dict[str, int]:
    """Of every worker that has reported one."""
    return {
        point.seat: point.num_steps for point in read_history(command.folder / "log.jsonl").newest() if point.num_steps
    }
