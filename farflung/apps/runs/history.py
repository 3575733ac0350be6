"""What a run has told so far: one point per report, and the bytes that crossed between regions."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

RATE_SECONDS = 30.0
"""Tokens per second are those of this last while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One report of one worker."""

    seconds: float
    """Since the run began: wall clock, or virtual time; the time between an end and its resumption does not count."""
    seat: str
    region: str
    num_steps: int
    """Local steps of this worker, cumulative."""
    num_tokens: int
    loss: float | None
    """Mean of the training loss since its last report."""
    staleness: float | None = None
    """Versions that went by between dispatch and arrival, mean so far."""
    values: dict[str, float] = field(default_factory=dict[str, float])
    """What else it has told, by name."""
    waiting_seconds: float = 0.0
    """Time spent waiting for others, cumulative."""


@dataclass(slots=True)
class History:
    """Points in order, and bytes by (region that sent, region that received)."""

    points: list[Point] = field(default_factory=list[Point])
    link_bytes: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    latest: dict[str, Point] = field(default_factory=dict[str, Point])
    """The last point of each worker."""

    @property
    def seconds(self) -> float:
        """When the last point was made."""
        return self.points[-1].seconds if self.points else 0.0

    def add(self, entry: dict[str, Any]) -> None:
        """Take one entry of the log; entries of other kinds are passed over."""
        if entry["kind"] == "report":
            names = Point.__dataclass_fields__
            self.append(Point(**{name: value for name, value in entry.items() if name in names}))
        elif entry["kind"] == "bytes":
            self.link_bytes = {(one["from"], one["to"]): one["bytes"] for one in entry["links"]}

    def append(self, point: Point) -> None:
        """Take one point, not older than the last."""
        before = self.latest.get(point.seat)
        self.points.append(point)
        if point.loss is None and before is not None:
            point = replace(point, loss=before.loss)
        self.latest[point.seat] = point

    def newest(self, region: str | None = None) -> list[Point]:
        """The last point of each worker (of a region), in order of their names, with the last loss it has told."""
        return [self.latest[seat] for seat in sorted(self.latest) if region in (None, self.latest[seat].region)]

    def num_tokens(self, region: str | None = None) -> int:
        """Tokens trained on (in a region)."""
        return sum(point.num_tokens for point in self.newest(region))

    def num_steps(self, region: str | None = None) -> int:
        """Local steps taken (in a region)."""
        return sum(point.num_steps for point in self.newest(region))

    def loss(self, region: str | None = None) -> float | None:
        """Mean over workers (of a region) of the last loss each has told."""
        losses = [point.loss for point in self.newest(region) if point.loss is not None]
        return sum(losses) / len(losses) if losses else None

    def tokens_per_second(self, region: str | None = None) -> float:
        """Rate of the last while (in a region); 0 as long as nothing can be told."""
        first: dict[str, Point] = {}
        for point in reversed(self.points):
            if point.seconds < self.seconds - RATE_SECONDS:
                break
            if region in (None, point.region):
                first[point.seat] = point
        rates = [
            (self.latest[seat].num_tokens - point.num_tokens) / (self.latest[seat].seconds - point.seconds)
            for seat, point in first.items()
            if self.latest[seat].seconds > point.seconds
        ]
        return sum(rates)

    def losses(self, region: str) -> list[tuple[float, float]]:
        """(seconds, loss) of a region's workers, in order of time."""
        return [
            (point.seconds, point.loss) for point in self.points if point.region == region and point.loss is not None
        ]


def report_entry(point: Point) -> dict[str, Any]:
    """A point as an entry of the log."""
    return {"kind": "report", **asdict(point)}


def decision_entry(seconds: float, seat: str, sentence: str) -> dict[str, Any]:
    """What a seat has chosen by measurements, and why, as an entry of the log."""
    return {"kind": "decision", "seconds": seconds, "seat": seat, "decision": sentence}


def bytes_entry(seconds: float, link_bytes: dict[tuple[str, str], int]) -> dict[str, Any]:
    """The bytes so far as an entry of the log."""
    links = [{"from": one, "to": other, "bytes": link_bytes[one, other]} for one, other in sorted(link_bytes)]
    return {"kind": "bytes", "seconds": seconds, "links": links}


def read_history(path: Path) -> History:
    """The history that a log holds; empty if there is none yet.

    Raises:
        ValueError: the file is not the log of a run.
    """
    history = History()
    for entry in _entries(path):
        try:
            history.add(entry)
        except (KeyError, TypeError):
            raise ValueError(f"{path} is not the log of a run: move it away, or choose another folder") from None
    return history


def _entries(path: Path) -> Iterable[Any]:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines) - 1:  # the last one may be cut off by a crash
                raise ValueError(f"line {number + 1} of {path} is damaged: move the file away") from None
