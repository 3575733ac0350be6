"""How much of its time a seat has waited, and what for."""

from farflung.apps.runs.history import Point

WAITED = "waited_for_"
"""Begins the names of values that say for what a seat has waited how many seconds."""


def idle_share(point: Point) -> float:
    """The part of the run's time that this seat has waited for others."""
    waited = sum(_waited(point).values()) or point.waiting_seconds
    return min(1.0, waited / point.seconds) if point.seconds else 0.0


def why_idle(point: Point | None) -> str:
    """`31 %, mostly for sampling`: the share of a seat's time that it waited, and what for where that is told."""
    if point is None or not point.seconds:
        return "-"
    waited = _waited(point)
    share = f"{idle_share(point):.0%}" if idle_share(point) else "0 %"
    return f"{share}, mostly for {max(waited, key=lambda word: waited[word])}" if sum(waited.values()) else share


def _waited(point: Point) -> dict[str, float]:
    return {name.removeprefix(WAITED): value for name, value in point.values.items() if name.startswith(WAITED)}
