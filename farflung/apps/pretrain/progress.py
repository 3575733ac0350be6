"""The bars that a run shows: one per region, and one for the whole budget."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from farflung.apps.runs.bars import HistoryBars
from farflung.apps.runs.history import History
from farflung.apps.runs.plot import byte_text
from farflung.apps.runs.seats import Seat


def shares(seats: Sequence[Seat]) -> dict[str, float]:
    """The part of the budget that each region may be expected to do, by the speed of its workers."""
    speeds: dict[str, float] = {}
    for seat in seats:
        if seat.kind == "worker":
            speeds[seat.region] = speeds.get(seat.region, 0.0) + seat.speed
    total = sum(speeds.values())
    return {region: speed / total for region, speed in speeds.items()}


def row(history: History, region: str | None) -> dict[str, Any]:
    """Loss, speed, staleness and bytes of a region (None: of all) as the bars show them."""
    loss = history.loss(region)
    stale = [point.staleness for point in history.newest(region) if point.staleness is not None]
    crossed = [count for (one, other), count in history.link_bytes.items() if one != other and region in (None, one)]
    return {
        "loss": "  -  " if loss is None else f"{loss:.3f}",
        "rate": f"{history.tokens_per_second(region):.0f}",
        "staleness": f"{sum(stale) / len(stale):.1f}" if stale else "-",
        "sent": byte_text(sum(crossed)),
    }


class TokenBars(HistoryBars):
    """Rich bars over a history; use in `with`."""

    def __init__(self, history: History, seats: Sequence[Seat], num_tokens: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} tokens/s"),
            TextColumn("staleness {task.fields[staleness]}"),
            TextColumn("sent {task.fields[sent]}"),
            TimeRemainingColumn(),
            console=console,
        )
        super().__init__(history, self._progress)
        self._tasks: dict[str | None, TaskID] = {}
        for region, share in shares(seats).items():
            self._tasks[region] = self._progress.add_task(region, total=share * num_tokens, **row(history, region))
        self._tasks[None] = self._progress.add_task("all regions", total=num_tokens, **row(history, None))

    def show(self) -> None:
        """Bring the bars up to date."""
        for region, task in self._tasks.items():
            self._progress.update(task, completed=self._history.num_tokens(region), **row(self._history, region))
