"""A system as a run sees it: which seats it needs, and what sits on each."""

from pathlib import Path
from typing import Protocol, TypeVar

from farflung.apps.runs.part import Part, Sitting
from farflung.apps.runs.run import Run
from farflung.apps.runs.seats import Seat

AnyRun = TypeVar("AnyRun", bound=Run)
AnyMaterials_contra = TypeVar("AnyMaterials_contra", contravariant=True)


class Engine(Protocol[AnyRun, AnyMaterials_contra]):
    """A system at the service of one kind of run."""

    def seats(self, run: AnyRun) -> list[Seat]:
        """What a run needs, workers last."""
        ...

    def needs(self, seat: Seat, seats: tuple[Seat, ...]) -> list[int]:
        """The seats that must be taken before this one can begin."""
        ...

    def part(self, sitting: Sitting[AnyRun], materials: AnyMaterials_contra) -> Part:
        """The seat's part, started."""
        ...

    def result_seats(self, seats: tuple[Seat, ...]) -> list[Seat]:
        """Any of these that have come to the end can tell the run's result."""
        ...

    def prepare_resume(self, homes: dict[int, Path], seats: tuple[Seat, ...]) -> bool:
        """Bring what the seats have kept in their homes to one common moment; nobody sits there now.

        Whether they have kept anything; else the run begins anew.

        Raises:
            ValueError: what they have kept does not belong together.
        """
        ...
