"""The log of a run, read as it grows: its history, the bytes over time, and what its seats have decided."""

import json
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farflung.apps.runs.history import History
from farflung.apps.runs.known import RUN_FILE, SUMMARY_FILE
from farflung.apps.runs.logs import LOG_NAME
from farflung.apps.runs.plot import Series

QUIET_SECONDS = 20.0
"""A run whose log does not grow for so long has ended or stands still."""
DECISIONS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision of a seat."""

    seconds: float
    """Since the run began."""
    seat: str
    sentence: str


@dataclass(slots=True)
class RunLog:
    """What has been read of one run."""

    folder: Path
    name: str
    kind: str
    history: History = field(default_factory=History)
    byte_totals: Series = field(default_factory=Series)
    """(seconds, bytes between regions so far; all bytes where there is one region)."""
    decisions: list[Decided] = field(default_factory=list[Decided])
    version: int = 0
    """Grows when anything has been read."""
    state: str = ""
    _offset: int = 0

    @classmethod
    def open(cls, folder: Path) -> "RunLog":
        """The run in `folder`, of which nothing has been read yet.

        Raises:
            ValueError: there is no run.
        """
        path = folder.expanduser() / RUN_FILE
        try:
            run = tomllib.loads(path.read_text(encoding="utf-8"))["run"]
            return cls(folder=path.parent.absolute(), name=str(run["name"]), kind=str(run["kind"]))
        except FileNotFoundError:
            raise ValueError(f"there is no run in {folder}: it would hold a {RUN_FILE}") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError):
            raise ValueError(f"{path} is not the file of a run") from None

    def read(self) -> None:
        """Take what has been written since; a line that is not complete is left for the next time.

        Raises:
            ValueError: the file is not the log of a run.
        """
        path = self.folder / LOG_NAME
        if not path.exists():
            self.state = "has not begun"
            return
        if path.stat().st_size < self._offset:  # begun anew
            self._begin()
        with path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} is not the log of a run") from None
        self.version += bool(whole)
        self.state = self._state(path)

    def _begin(self) -> None:
        self.history, self.byte_totals, self.decisions = History(), [], []
        self._offset = 0
        self.version += 1

    def _take(self, entry: dict[str, Any]) -> None:
        self.history.add(entry)
        if entry["kind"] == "bytes":
            links = self.history.link_bytes
            crossing = [number for (one, other), number in links.items() if one != other]
            self.byte_totals.append((float(entry["seconds"]), float(sum(crossing or links.values()))))
        elif entry["kind"] == "decision":
            self.decisions.append(Decided(float(entry["seconds"]), str(entry["seat"]), str(entry["decision"])))
            del self.decisions[:-DECISIONS_MAX]

    def _state(self, path: Path) -> str:
        changed_at = path.stat().st_mtime
        summary = self.folder / SUMMARY_FILE
        if summary.exists() and summary.stat().st_mtime >= changed_at:
            return "has ended"
        quiet_seconds = time.time() - changed_at
        return "runs" if quiet_seconds < QUIET_SECONDS else f"says nothing since {_long(quiet_seconds)}"


def _long(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
