"""The bar that an alignment run shows: steps, what answers are worth, how stale they are, what is waited for."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from farflung.apps.runs.history import History, Point
from farflung.apps.runs.plot import byte_text
from farflung.apps.runs.seats import Seat

WAITED = "waited_for_"


def why_idle(point: Point | None) -> str:
    """`31 %, mostly for sampling`: the share of a seat's time that it waited, and what for."""
    if point is None or not point.seconds:
        return "-"
    waited = {name.removeprefix(WAITED): value for name, value in point.values.items() if name.startswith(WAITED)}
    share = min(1.0, sum(waited.values()) / point.seconds)
    return f"{share:.0%}, mostly for {max(waited, key=lambda word: waited[word])}" if sum(waited.values()) else "0 %"


def row(history: History, trainer: str) -> dict[str, Any]:
    """What the bar shows."""
    point = history.latest.get(trainer)
    values = {} if point is None else point.values
    workers = [one for name, one in history.latest.items() if name != trainer]
    return {
        "reward": f"{values['reward']:.3f}" if "reward" in values else "  -  ",
        "passed": f"{values['pass_rate']:.1%}" if "pass_rate" in values else "-",
        "staleness": "-" if point is None or point.staleness is None else f"{point.staleness:.2f}",
        "trainer": why_idle(point),
        "workers": why_idle(max(workers, key=lambda one: one.waiting_seconds, default=None)),
        "bytes": byte_text(values["bytes_per_sync"]) if "bytes_per_sync" in values else "-",
    }


class StepBar:
    """A rich bar over a history; use in `with`."""

    def __init__(self, history: History, seats: Sequence[Seat], num_steps: int, console: Console) -> None:
        self._history = history
        self._trainer = seats[0].name
        self._progress = Progress(
            BarColumn(bar_width=20),
            TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
            TextColumn("reward {task.fields[reward]}"),
            TextColumn("passed {task.fields[passed]}"),
            TextColumn("staleness {task.fields[staleness]}"),
            TextColumn("trainer idle {task.fields[trainer]}"),
            TextColumn("workers idle {task.fields[workers]}"),
            TextColumn("{task.fields[bytes]} per sync"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("steps", total=num_steps, **row(history, self._trainer))

    def __enter__(self) -> "StepBar":
        self._progress.start()
        self.show()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self) -> None:
        """Bring it up to date."""
        point = self._history.latest.get(self._trainer)
        completed = point.values.get("step", 0.0) if point is not None else 0.0
        self._progress.update(self._task, completed=completed, **row(self._history, self._trainer))
