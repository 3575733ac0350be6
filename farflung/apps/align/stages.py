"""The block servers behind a rollout worker, as seats of its run."""

import itertools
from collections.abc import Sequence

from farflung.apps.align.chain import load_stage, stage_blocks, stage_config
from farflung.apps.align.materials import Materials
from farflung.apps.align.run_file import RunFile
from farflung.apps.capacity import choose_device
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.part import Sitting, Stopped, sent_bytes
from farflung.apps.runs.seats import WORKER, Seat
from farflung.model.source import ModelSource
from farflung.systems.swarm.messages import ACTOR
from farflung.systems.swarm.server import Server
from farflung.world.host import Host

STAGE = "stage"


def stage_seats(workers: Sequence[Seat], num_stages: int) -> list[Seat]:
    """So many block servers for each of these workers, after the seats of all workers."""
    pairs = itertools.product(workers, range(num_stages))
    return [
        Seat(
            index=len(workers) + 1 + place,
            kind=f"{STAGE}-{worker.number}-{number}",
            region=worker.region,
            number=worker.number,
            num_ranks=1,
        )
        for place, (worker, number) in enumerate(pairs)
    ]


def seat_is_stage(seat: Seat) -> bool:
    """Whether a block server sits there."""
    return seat.kind.startswith(f"{STAGE}-")


def stages_of(worker: Seat, seats: Sequence[Seat]) -> list[Seat]:
    """The servers behind a worker, first blocks first."""
    return [seat for seat in seats if seat_is_stage(seat) and seat.number == worker.number]


def worker_of(stage: Seat, seats: Sequence[Seat]) -> Seat:
    """Whom a server computes for."""
    return next(seat for seat in seats if seat.kind == WORKER and seat.number == stage.number)


class StagePart:
    """Serves its blocks to its worker until the run is over."""

    def __init__(self, sitting: Sitting[RunFile], materials: Materials) -> None:
        seats = sitting.seats
        worker = worker_of(sitting.seat, seats)
        own = stages_of(worker, seats)
        source = ModelSource.open(materials.path)
        blocks = stage_blocks(source.num_blocks, len(own))[own.index(sitting.seat)]
        device = choose_device(sitting.run.model.device)
        span = load_stage(source, blocks, device, materials.adapter_of_blocks())
        server = Server(stage_config(source, sitting.peers[worker.index]), span)
        self._host = Host(server, sitting.world, ACTOR)
        self._sitting = sitting
        self._stopped = Stopped()

    async def run(self) -> None:
        await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()

    def report(self) -> SeatReport:
        return SeatReport(seat=self._sitting.seat.index, sent=sent_bytes(self._sitting.world))

    def result(self) -> None:
        return None

    def close(self) -> None:
        self._host.stop()
