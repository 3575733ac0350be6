"""Where a run's numbers go: always a JSONL file; TensorBoard, W&B and trackio if installed and wanted."""

import errno
import importlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from farflung.apps.runs.run import LoggingSettings

LOG_NAME = "log.jsonl"


class Recorder(Protocol):
    """One place that numbers go to."""

    def scalars(self, num_tokens: int, values: Mapping[str, float]) -> None:
        """Values by name, at so many tokens of the whole run."""
        ...

    def close(self) -> None: ...


class JsonLines:
    """The log of a run: a line of JSON per entry, appended and flushed at once."""

    def __init__(self, path: Path) -> None:
        # A line that a crash or a full disk has cut off must not become the beginning of the next.
        written = path.read_bytes() if path.exists() else b""
        self._file = path.open("ab", buffering=0)
        self._file.truncate(written.rfind(b"\n") + 1)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append an entry.

        Raises:
            OSError: the disk does not take it.
        """
        line = json.dumps(entry).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Writes event files that `tensorboard --logdir` shows."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def scalars(self, num_tokens: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, num_tokens)

    def close(self) -> None:
        self._writer.close()


class Tracker:
    """W&B or trackio, which has the same three calls."""

    def __init__(self, module: str, settings: LoggingSettings, name: str, tables: Mapping[str, Any]) -> None:
        self._module: Any = importlib.import_module(module)
        self._module.init(project=settings.project, name=name, config=dict(tables))

    def scalars(self, num_tokens: int, values: Mapping[str, float]) -> None:
        self._module.log({**values, "tokens": num_tokens})

    def close(self) -> None:
        self._module.finish()


def check_installed(settings: LoggingSettings) -> None:
    """Refuse what is asked for and not installed, before anything is trained.

    Raises:
        ValueError: names the package.
    """
    for module, is_wanted in (
        ("tensorboard", settings.tensorboard is True),
        ("wandb", settings.wandb),
        ("trackio", settings.trackio),
    ):
        if is_wanted and not _is_installed(module):
            raise ValueError(
                f"logging.{module} is on and {module} is not installed: pip install {module}, or turn it off"
            )


def open_recorders(settings: LoggingSettings, folder: Path, name: str, tables: Mapping[str, Any]) -> list[Recorder]:
    """What the settings ask for beside the JSONL log; TensorBoard also where it happens to be installed."""
    recorders: list[Recorder] = []
    if settings.tensorboard is not False and _is_installed("tensorboard"):
        recorders.append(TensorBoard(folder / "tensorboard"))
    recorders += [
        Tracker(module, settings, name, tables) for module in ("wandb", "trackio") if getattr(settings, module)
    ]
    return recorders


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
