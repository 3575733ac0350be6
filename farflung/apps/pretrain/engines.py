"""Which engine runs which algorithm."""

from pathlib import Path
from typing import Protocol

from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.part import Part, Sitting
from farflung.apps.pretrain.run_file import RunFile
from farflung.apps.pretrain.seats import Seat


class Engine(Protocol):
    """A system as `farflung pretrain` sees it."""

    def seats(self, run: RunFile) -> list[Seat]:
        """What a run needs, servers first."""
        ...

    def needs(self, seat: Seat, seats: tuple[Seat, ...]) -> list[int]:
        """The seats that must be taken before this one can begin."""
        ...

    def part(self, sitting: Sitting, materials: Materials) -> Part:
        """The seat's part, started."""
        ...

    def result_seats(self, seats: tuple[Seat, ...]) -> list[Seat]:
        """Any of these that have come to the end can tell the run's model."""
        ...

    def prepare_resume(self, homes: dict[int, Path], seats: tuple[Seat, ...]) -> None:
        """Bring what the seats have kept in their homes to one common moment; nobody sits there now.

        Raises:
            ValueError: there is none.
        """
        ...


def engine_of(run: RunFile) -> Engine:
    """The engine of the run's algorithm."""
    if run.algorithm.is_hierarchical:
        from farflung.apps.pretrain.hierarchy import HierarchyEngine

        return HierarchyEngine()
    from farflung.apps.pretrain.desync import DesyncEngine

    return DesyncEngine()
