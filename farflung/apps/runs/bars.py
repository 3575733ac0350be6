"""What the bars of all kinds of runs have in common: they show a history while they are entered."""

from abc import ABC, abstractmethod
from typing import Self

from rich.live import Live
from rich.progress import Progress

from farflung.apps.runs.history import History


class HistoryBars(ABC):
    """Rich bars over a history; use in `with`."""

    def __init__(self, history: History, display: Progress | Live) -> None:
        """`display`: what is on the terminal meanwhile."""
        self._history = history
        self._display = display

    def __enter__(self) -> Self:
        self._display.start()
        self.show()
        return self

    def __exit__(self, *exception: object) -> None:
        self._display.stop()

    @abstractmethod
    def show(self) -> None:
        """Bring the bars up to date."""
