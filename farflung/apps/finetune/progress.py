"""The bars of a fine-tuning run: its rounds, and what every worker has measured."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from farflung.apps.runs.history import History
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


class RoundBars:
    """Rich bars over a history; use in `with`."""

    def __init__(
        self,
        history: History,
        num_rounds_max: int,
        gradient_bytes_of: Callable[[int, int], int],
        console: Console,
    ) -> None:
        """`gradient_bytes_of`: rounds and workers -> what whole gradients would have taken."""
        self._history = history
        self._gradient_bytes_of = gradient_bytes_of
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._rounds = self._progress.add_task("rounds", total=num_rounds_max, told="")
        self._workers: dict[str, TaskID] = {}

    def __enter__(self) -> "RoundBars":
        self._progress.start()
        self.show()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self) -> None:
        """Bring the bars up to date."""
        history = self._history
        self._progress.update(self._rounds, completed=num_rounds(history), told=self._told())
        total = max(1, history.num_steps())
        for point in history.newest()[:WORKERS_SHOWN_MAX]:
            if point.seat not in self._workers:
                self._workers[point.seat] = self._progress.add_task(f"  {point.seat}", total=total, told="slots")
            self._progress.update(self._workers[point.seat], completed=point.num_steps, total=total)

    def _told(self) -> str:
        history, found = self._history, accuracy(self._history)
        newest = loss(history)
        words: Sequence[str] = (
            "loss   -  " if newest is None else f"loss {newest:.3f}",
            *(() if found is None else (f"accuracy {found:.1%}",)),
            f"sent {byte_text(sum(history.link_bytes.values()))}",
            f"(gradients: {byte_text(self._gradient_bytes_of(num_rounds(history), len(history.newest())))})",
        )
        return "  ".join(words)
