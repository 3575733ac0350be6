"""The part of a run of single bytes that goes on as before: all workers are there and sign at even intervals (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass

from farflung.apps.finetune.worker import RECEIVED, SENT
from farflung.apps.plan.onebyte_run import ROUNDS_PER_SEAL
from farflung.apps.plan.places import Bytes
from farflung.apps.runs.history import History, Point

ROUNDS_TO_SETTLE = 2
"""After all workers have measured, until shares of a round go by their speeds."""
ROUNDS_MIN = 24
"""Of a whole run, for those between two signatures to be steady."""


@dataclass(frozen=True, slots=True)
class Steady:
    """What was measured over some rounds."""

    num_rounds: int
    rounds_per_second: float
    bytes_per_round: Bytes
    """Of the method's own messages, from site to site and within."""


def steady(history: History, num_workers: int, home: str) -> Steady | None:
    """From some rounds after the last worker's first measurement to the last but one, when nobody has signed for the
    end yet; None: too few to tell. All workers write to the site `home` alone, and hear from it."""
    told: dict[str, list[Point]] = {}
    for point in history.points:
        told.setdefault(point.seat, []).append(point)
    if len(told) < num_workers or not all(points[-1].num_steps for points in told.values()):
        return None
    beginnings = [_round(next(one for one in points if one.num_steps)) for points in told.values()]
    last_round = min(_round(points[-1]) for points in told.values()) - 1
    num_rounds = last_round - max(beginnings) - ROUNDS_TO_SETTLE
    if num_rounds >= ROUNDS_PER_SEAL:  # signatures come once in so many: bytes are those of whole multiples
        num_rounds -= num_rounds % ROUNDS_PER_SEAL
    pairs = [(_reached(points, last_round - num_rounds), _reached(points, last_round)) for points in told.values()]
    if num_rounds < 1 or any(_round(first) == _round(last) for first, last in pairs):
        return None
    rates = [(_round(last) - _round(first)) / (last.seconds - first.seconds) for first, last in pairs]
    crossed: Bytes = {}
    for first, last in pairs:
        for name, way in ((SENT, (first.region, home)), (RECEIVED, (home, first.region))):
            per_round = (last.values[name] - first.values[name]) / (_round(last) - _round(first))
            crossed[way] = crossed.get(way, 0.0) + per_round
    return Steady(num_rounds, sum(rates) / len(rates), crossed)


def _round(point: Point) -> int:
    return int(point.values["round"])


def _reached(points: Sequence[Point], number: int) -> Point:
    """Where so many rounds are told of first."""
    return next(point for point in points if _round(point) >= number)
