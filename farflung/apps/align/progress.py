"""The bar that an alignment run shows: steps, what answers are worth, how stale they are, what is waited for."""

from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from farflung.apps.align.evaluated import EVALUATED_PASS_RATE, EVALUATED_VERSION
from farflung.apps.runs.bars import HistoryBars
from farflung.apps.runs.history import History
from farflung.apps.runs.idle import why_idle
from farflung.apps.runs.plot import byte_text
from farflung.apps.runs.seats import Seat


def evaluated(values: Mapping[str, float]) -> str:
    """The newest evaluation; nothing if there was none."""
    if EVALUATED_PASS_RATE not in values:
        return ""
    return f"version {values[EVALUATED_VERSION]:.0f} passed {values[EVALUATED_PASS_RATE]:.1%} of other prompts"


def shown(history: History, trainer: str) -> str:
    """A line of what a run has told last."""
    point = history.latest.get(trainer)
    values = {} if point is None else point.values
    workers = [one for name, one in history.latest.items() if name != trainer]
    parts = [
        f"reward {values['reward']:.3f}" if "reward" in values else "no step yet",
        f"passed {values['pass_rate']:.1%}" if "pass_rate" in values else "",
        evaluated(values),
        f"staleness {point.staleness:.2f}" if point is not None and point.staleness is not None else "",
        f"{byte_text(values['bytes_per_sync'])} per sync" if "bytes_per_sync" in values else "",
        f"trainer idle {why_idle(point)}",
        f"workers idle {why_idle(max(workers, key=lambda one: one.waiting_seconds))}" if workers else "",
    ]
    return "; ".join(part for part in parts if part)


class StepBar(HistoryBars):
    """A bar of the steps and a line below it; use in `with`."""

    def __init__(self, history: History, seats: Sequence[Seat], num_steps: int, console: Console) -> None:
        self._trainer = seats[0].name
        self._line = Text()
        self._progress = Progress(
            BarColumn(bar_width=40),
            TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("steps", total=num_steps)
        super().__init__(history, Live(Group(self._progress, self._line), console=console))

    def show(self) -> None:
        """Bring both up to date."""
        point = self._history.latest.get(self._trainer)
        self._progress.update(self._task, completed=point.values.get("step", 0.0) if point is not None else 0.0)
        self._line.plain = shown(self._history, self._trainer)
