"""What the page *Runs* shows of a run, computed from its log: curves over time or bytes, seats, links."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from farflung.apps.dashboard.run_log import Decided, RunLog
from farflung.apps.runs.history import History, Point
from farflung.apps.runs.idle import WAITED, why_idle
from farflung.apps.runs.plot import byte_text, link_rows, smooth

LOSS, STALENESS = "loss", "staleness"
REWARD = "reward"
"""What a run that tells it is about."""
DECISIONS_SHOWN_MAX = 50
OVER_TIME, OVER_BYTES = "time", "bytes"


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of the plot."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class SeatRow:
    """How one seat fares."""

    name: str
    region: str
    num_steps: int
    num_tokens: int
    loss: float | None
    staleness: float | None
    idle: str
    """Which share of its time, and why."""


@dataclass(frozen=True, slots=True)
class LinkRow:
    """What one link has carried in one direction."""

    name: str
    num_bytes: int
    share: float
    """Of what the busiest link has."""


@dataclass(frozen=True, slots=True)
class RunView:
    """The page, but for the plot."""

    name: str
    kind: str
    folder: str
    state: str
    tiles: tuple[tuple[str, str], ...]
    quantities: tuple[str, ...]
    """What may be plotted."""
    seats: tuple[SeatRow, ...]
    links: tuple[LinkRow, ...]
    decisions: tuple[Decided, ...]
    """The newest first."""


def view_of(log: RunLog) -> RunView:
    """The page as of now."""
    history = log.history
    return RunView(
        name=log.name,
        kind=log.kind,
        folder=str(log.folder),
        state=log.state,
        tiles=tuple(_tiles(log)),
        quantities=tuple(quantities(history)),
        seats=tuple(_seat(point) for point in history.newest()),
        links=tuple(_links(history)),
        decisions=tuple(reversed(log.decisions[-DECISIONS_SHOWN_MAX:])),
    )


def _tiles(log: RunLog) -> list[tuple[str, str]]:
    history = log.history
    loss, newest = history.loss(), history.newest()
    stale = [point.staleness for point in newest if point.staleness is not None]
    rewards = [point.values[REWARD] for point in newest if REWARD in point.values]
    found = [(f"{history.num_tokens():,}", "tokens"), (f"{history.num_steps():,}", "steps")]
    found.append((f"{history.tokens_per_second():.0f}", "tokens/s"))
    if loss is not None:
        found.append((f"{loss:.3f}", LOSS))
    if rewards:
        found.append((f"{rewards[-1]:.3f}", REWARD))
    if stale:
        found.append((f"{sum(stale) / len(stale):.1f}", STALENESS))
    if log.byte_totals:
        found.append((byte_text(log.byte_totals[-1][1]), "sent"))
    return found


def quantities(history: History) -> list[str]:
    """What may be plotted, the most telling first."""
    names = dict.fromkeys(name for point in history.newest() for name in point.values if not name.startswith(WAITED))
    has_loss = any(point.loss is not None for point in history.newest())
    has_staleness = any(point.staleness is not None for point in history.newest())
    first = [REWARD] if REWARD in names else []
    own = [LOSS] if has_loss else []
    last = [STALENESS] if has_staleness else []
    return [*first, *own, *(name for name in names if name != REWARD), *last]


def _seat(point: Point) -> SeatRow:
    return SeatRow(
        name=point.seat,
        region=point.region,
        num_steps=point.num_steps,
        num_tokens=point.num_tokens,
        loss=point.loss,
        staleness=point.staleness,
        idle=why_idle(point),
    )


def _links(history: History) -> list[LinkRow]:
    rows = link_rows(history)
    most = max((count for _, count in rows), default=0) or 1
    return [LinkRow(name, count, count / most) for name, count in rows]


def curves(log: RunLog, quantity: str, over: str) -> tuple[Curve, ...]:
    """One line per region: the quantity over seconds of the run, or over the bytes that had been sent by then."""
    regions = sorted({point.region for point in log.history.points})
    found: list[Curve] = []
    for region in regions:
        points = [
            (point.seconds, value)
            for point in log.history.points
            if point.region == region and (value := _value(point, quantity)) is not None
        ]
        if over == OVER_BYTES:
            points = [(bytes_at(log.byte_totals, seconds), value) for seconds, value in points]
        if points:
            found.append(Curve(region, tuple((float(f"{x:.6g}"), float(f"{y:.6g}")) for x, y in smooth(points))))
    return tuple(found)


def _value(point: Point, quantity: str) -> float | None:
    if quantity == LOSS:
        return point.loss
    return point.staleness if quantity == STALENESS else point.values.get(quantity)


def bytes_at(totals: Sequence[tuple[float, float]], seconds: float) -> float:
    """Bytes sent by then, on straight lines between what was counted; at the end, as many as were counted last."""
    index = bisect.bisect_right(totals, seconds, key=lambda total: total[0])
    before: tuple[float, float] = totals[index - 1] if index else (0.0, 0.0)
    if index == len(totals):
        return before[1]
    after = totals[index]
    return before[1] + (after[1] - before[1]) * (seconds - before[0]) / (after[0] - before[0])
