"""The bars of a fine-tuning run: its rounds, and what every worker has measured."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from farflung.apps.runs.bars import HistoryBars
from farflung.apps.runs.history import History, Point
from farflung.apps.runs.plot import byte_text

WORKERS_SHOWN_MAX = 12


def num_rounds(history: History) -> int:
    """Of the journal, as far as any worker has told."""
    return int(max((point.values.get("round", 0.0) for point in history.newest()), default=0.0))


def accuracy(history: History) -> float | None:
    """On held-out examples, the newest that was told."""
    told = [point for point in history.newest() if "accuracy" in point.values]
    return max(told, key=lambda point: point.values["round"]).values["accuracy"] if told else None


def loss(history: History) -> float | None:
    """On held-out examples, the newest that was told."""
    told = [point for point in history.newest() if point.loss is not None]
    return max(told, key=lambda point: point.seconds).loss if told else None


def gradient_bytes(num_parameters: int, bytes_per_parameter: int, num_rounds: int, num_workers: int) -> int:
    """What as many workers send that exchange a whole gradient in as many rounds, around a ring."""
    return 2 * (num_workers - 1) * num_parameters * bytes_per_parameter * num_rounds


def sent_words(num_bytes: float) -> str:
    """For bars."""
    return f"sent {byte_text(int(num_bytes))}"


def quality_words(history: History) -> list[str]:
    """How good the model is, as far as that was told."""
    newest, found = loss(history), accuracy(history)
    told = ["loss   -  " if newest is None else f"loss {newest:.3f}"]
    return told if found is None else [*told, f"accuracy {found:.1%}"]


def privacy_words(point: Point) -> list[str]:
    """What a worker has spent of its budget, if it has one."""
    if "epsilon" not in point.values:
        return []
    return [f"epsilon {point.values['epsilon']:.3f}", *(["its budget is spent"] if point.values["is_spent"] else [])]


class LoneBar(HistoryBars):
    """A rich bar over the history of a run on one machine; use in `with`."""

    def __init__(
        self, history: History, num_rounds_max: int, console: Console, *, rows_per_round: int | None = None
    ) -> None:
        """`rows_per_round`: show how many rows pass a second, rather than rounds."""
        self._rows_per_round = rows_per_round
        self._progress = Progress(
            TextColumn("rounds"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=console,
        )
        super().__init__(history, self._progress)
        self._rounds = self._progress.add_task("", total=num_rounds_max, completed=num_rounds(history), told="")

    def show(self) -> None:
        """Bring the bar up to date."""
        num_bytes = sum(point.values.get("bytes", 0.0) for point in self._history.newest())
        speed = next((task.speed for task in self._progress.tasks), None)
        rate: list[str] = []
        if speed and self._rows_per_round is None:
            rate = [f"{speed:.3g} rounds/s"]
        elif speed and self._rows_per_round is not None:
            rate = [f"{speed * self._rows_per_round:.3g} rows/s"]
        told = "  ".join([*quality_words(self._history), sent_words(num_bytes), *rate])
        self._progress.update(self._rounds, completed=num_rounds(self._history), told=told)


class LeftColumn(TimeRemainingColumn):
    """The time that is left of the rounds; a worker's share of them comes to no end."""

    def render(self, task: Task) -> Text:
        """See rich."""
        return super().render(task) if task.id == 0 else Text("")


class RoundBars(HistoryBars):
    """Rich bars over a history; use in `with`."""

    def __init__(
        self,
        history: History,
        num_rounds_max: int,
        gradient_bytes_of: Callable[[int, int], int],
        console: Console,
    ) -> None:
        """`gradient_bytes_of`: rounds and workers -> what whole gradients would have taken."""
        self._gradient_bytes_of = gradient_bytes_of
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[told]}"),
            LeftColumn(),
            console=console,
        )
        super().__init__(history, self._progress)
        self._rounds = self._progress.add_task("rounds", total=num_rounds_max, told="")
        self._workers: dict[str, TaskID] = {}

    def show(self) -> None:
        """Bring the bars up to date."""
        history = self._history
        self._progress.update(self._rounds, completed=num_rounds(history), told=self._told())
        total = max(1, history.num_steps())
        for point in history.newest()[:WORKERS_SHOWN_MAX]:
            if point.seat not in self._workers:
                self._workers[point.seat] = self._progress.add_task(f"  {point.seat}", total=total, told="")
            told = ", ".join(["slots", *privacy_words(point)])
            self._progress.update(self._workers[point.seat], completed=point.num_steps, total=total, told=told)

    def _told(self) -> str:
        history = self._history
        words = (
            *quality_words(history),
            sent_words(sum(history.link_bytes.values())),
            f"(gradients: {byte_text(self._gradient_bytes_of(num_rounds(history), len(history.newest())))})",
        )
        return "  ".join(words)
