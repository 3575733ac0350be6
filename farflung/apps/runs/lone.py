"""A run that needs no other machine: one seat, whose work is done in the process of the command."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from farflung.apps.runs.lead import Gathered
from farflung.apps.runs.local import Interrupted
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.run import Run
from farflung.apps.runs.seats import Seat

AnyRun_contra = TypeVar("AnyRun_contra", bound=Run, contravariant=True)
AnyMaterials_contra = TypeVar("AnyMaterials_contra", contravariant=True)


class LoneWork(Protocol[AnyRun_contra, AnyMaterials_contra]):
    """What a kind of run does by itself."""

    @property
    def seat(self) -> Seat:
        """Under which it is reported."""
        ...

    def prepare(self, folder: Path, run: AnyRun_contra, *, is_resumed: bool) -> bool:
        """Look what an earlier sitting has kept in `folder`; whether there is anything to go on from.

        Raises:
            ValueError: it is damaged.
        """
        ...

    def work(
        self,
        run: AnyRun_contra,
        materials: AnyMaterials_contra,
        folder: Path,
        tell: Callable[[SeatReport], object],
        is_stopping: Callable[[], bool],
    ) -> Any:
        """Run to the end of the budget; the run's result. None: it was asked to stop, and has kept what it needs."""
        ...


class LoneRun:
    """Does it, and hears of Ctrl-C meanwhile."""

    def __init__(
        self,
        work: LoneWork[Any, Any],
        gathered: Gathered,
        folder: Path,
        *,
        tell: Callable[[str], object],
        show: Callable[[], object],
    ) -> None:
        """`tell` gets sentences for the user, `show` is called often, to bring bars up to date."""
        self._work = work
        self._gathered = gathered
        self._folder = folder
        self._tell = tell
        self._show = show
        self._num_interrupts = 0
        self._told_at: float | None = None

    def work(self, run: Run, materials: Any, *, is_resumed: bool) -> Any:
        """Run to the end of the budget; the run's result.

        Raises:
            Interrupted: by Ctrl-C or a termination.
        """
        if not self._work.prepare(self._folder, run, is_resumed=is_resumed) and is_resumed:
            self._tell("nothing had been saved when this run ended: it begins anew")
        self._gathered.begin_life(0)
        began_at = time.monotonic()

        def tell(report: SeatReport) -> None:
            """The log is spared what comes too often."""
            now = time.monotonic() - began_at
            is_due = self._told_at is None or now - self._told_at >= run.logging.every_seconds
            if is_due or report.loss is not None:
                self._told_at = now
                self._gathered.add(report, now, lambda peer: None)
            self._show()

        with _heard(self._interrupt):
            result = self._work.work(run, materials, self._folder, tell, lambda: self._num_interrupts > 0)
        if result is None:
            raise Interrupted(is_hurried=False)
        return result

    def _interrupt(self) -> None:
        self._num_interrupts += 1
        if self._num_interrupts > 1:
            raise Interrupted(is_hurried=True)
        self._tell("stops after this round; Ctrl-C again ends it at once")


@contextmanager
def _heard(interrupt: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C and terminations come to this function instead."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: interrupt()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
