"""Alignment as seats: a trainer and its rollout workers, or one that does both."""

from dataclasses import replace
from pathlib import Path

from farflung.apps.align.colocated import FOLDER, ColocatedPart
from farflung.apps.align.materials import Materials
from farflung.apps.align.parts import TrainerPart, WorkerPart
from farflung.apps.align.run_file import RunFile
from farflung.apps.align.stages import StagePart, seat_is_stage, stage_seats, stages_of, worker_of
from farflung.apps.runs.part import Part, Sitting
from farflung.apps.runs.seats import WORKER, Seat, worker_seats
from farflung.runtime.store import FileStore
from farflung.systems.alignment.records import CHAIN

TRAINER = "trainer"


class AlignmentEngine:
    """See `runs.engine.Engine`."""

    def __init__(self, run: RunFile) -> None:
        self._is_colocated = run.sync.mode == "colocated"

    def seats(self, run: RunFile) -> list[Seat]:
        if self._is_colocated:
            return [replace(worker_seats(run.regions, 0)[0], is_remote=False)]
        workers = worker_seats(run.regions, 1)
        trainer = Seat(index=0, kind=TRAINER, region=run.regions[0].name, num_ranks=run.training.ranks)
        return [trainer, *workers, *stage_seats(workers, run.rollout.stages)]

    def needs(self, seat: Seat, seats: tuple[Seat, ...]) -> list[int]:
        if self._is_colocated or seat.kind == TRAINER:
            return []
        if seat.kind != WORKER:
            return [worker_of(seat, seats).index]
        return [0, *(stage.index for stage in stages_of(seat, seats))]

    def part(self, sitting: Sitting[RunFile], materials: Materials) -> Part:
        if self._is_colocated:
            if sitting.seat.index:
                raise ValueError("this run is colocated: it has one seat, and nobody can join")
            return ColocatedPart(sitting, materials)
        if sitting.seat.kind == WORKER:
            return WorkerPart(sitting, materials, sitting.peers[0])
        if seat_is_stage(sitting.seat):
            return StagePart(sitting, materials)
        return TrainerPart(sitting, materials)

    def result_seats(self, seats: tuple[Seat, ...]) -> list[Seat]:
        return [seats[0]]

    def prepare_resume(self, homes: dict[int, Path], seats: tuple[Seat, ...]) -> bool:
        """The trainer is durable by itself, and workers take up whatever it has."""
        root = homes.get(0)
        if root is None:
            return True
        return (root / FOLDER).is_dir() if self._is_colocated else FileStore(root / "store").read(CHAIN) is not None
