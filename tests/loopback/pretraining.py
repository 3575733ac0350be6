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
UNENDING = 10_000_000
"""A budget of tokens that no machine uses up before it is interrupted, however late that is heard."""
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


def wait_learnt(command: Command) -> None:
    """Wait until all workers tell of losses that only a model which has learnt has."""

    def has_learnt() -> bool:
        assert command.process.poll() is None, command.output.read_text()
        losses = [point.loss for point in read_history(command.folder / "log.jsonl").newest()]
        return bool(losses) and all(loss is not None and loss < LEARNT_LOSS for loss in losses)

    wait_until(has_learnt, "the model has learnt", SECONDS_MAX)


def wait_told(command: Command, words: str) -> None:
    """Wait until the command has told that, but not for one that has ended."""

    def is_told() -> bool:
        assert command.process.poll() is None, command.output.read_text()
        return words in command.text

    wait_until(is_told, words, SECONDS_MAX)


def wait_steps(command: Command, seat: str) -> None:
    """Wait until a worker has made a step, but not for a run that has ended."""

    def has_made() -> bool:
        assert command.process.poll() is None, command.output.read_text()
        return seat in num_steps(command)

    wait_until(has_made, f"{seat} makes steps", SECONDS_MAX)


def wait_reports(command: Command, seat: str, count: int) -> None:
    """Wait for so many more reports of a worker, but not for a run that has ended."""

    def num_reports() -> int:
        assert command.process.poll() is None, command.output.read_text()
        return sum(point.seat == seat for point in read_history(command.folder / "log.jsonl").points)

    before = num_reports()
    wait_until(lambda: num_reports() >= before + count, f"{seat} reports", SECONDS_MAX)


def with_budget(command: Command, name: str, before: int, after: int) -> str:
    """The file of a run that was stopped, once its budget is another."""
    kept = command.folder / "run.toml"
    text = kept.read_text()
    assert text.count(f"{name} = {before}\n") == 1, text
    kept.write_text(text.replace(f"{name} = {before}\n", f"{name} = {after}\n"))
    return str(kept)


def interrupt(command: Command) -> None:
    """Ctrl-C, after which the run has stopped in good order."""
    command.send(signal.SIGINT)
    assert command.wait() == 130, command.output.read_text()


def num_steps(command: Command) -> dict[str, int]:
    """Of every worker that has reported one."""
    return {
        point.seat: point.num_steps for point in read_history(command.folder / "log.jsonl").newest() if point.num_steps
    }
