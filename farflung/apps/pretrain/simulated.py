"""`farflung pretrain --simulate`: every seat is a node of one simulation, with real training in virtual time."""

import asyncio
from collections.abc import Callable, Sequence

from farflung.apps.pretrain.engines import engine_of
from farflung.apps.pretrain.lead import Gathered
from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.messages import SeatReport
from farflung.apps.pretrain.part import Part, Sitting, sit
from farflung.apps.pretrain.run_file import RunFile
from farflung.apps.pretrain.seats import Seat
from farflung.apps.pretrain.sites import LinkSettings
from farflung.learn.parameters import Tensors
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Link, Topology
from farflung.world.address import PeerId
from farflung.world.doors import World

LOOK_SECONDS = 0.05
"""Of virtual time: how often the end of the run is looked for."""


def topology_of(links: Sequence[LinkSettings]) -> Topology:
    """The links of a run file between sites of the same names."""
    topology = Topology()
    for link in links:
        one, other = link.between
        seconds = link.latency_ms / 1000
        shape = Link(latency_seconds=seconds, bytes_per_second=link.bytes_per_second, loss=link.loss)
        topology.link(one, other, shape)
    return topology


class SimulatedRun:
    """One run on virtual time."""

    def __init__(self, run: RunFile, materials: Materials, gathered: Gathered) -> None:
        self._run = run
        self._materials = materials
        self._gathered = gathered
        self._engine = engine_of(run)
        self.seats = tuple(gathered.seats)
        self._peers = {seat.index: PeerId(seat.name) for seat in self.seats}
        self._parts: dict[int, Part] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._regions = {seat.name: seat.region for seat in self.seats}

    def train(self) -> Tensors:
        """Run to the end of the budget; the run's model.

        Raises:
            FarflungError: a worker was refused.
        """
        with Simulation(seed=self._run.run.seed, topology=topology_of(self._run.links), keep_trace=False) as simulation:
            for seat in self.seats:
                slowness = 1 / seat.speed if seat.kind == "worker" else 1.0
                simulation.node(
                    seat.name, site=seat.region, slowness=slowness, boot=self._boot_of(seat, simulation.now)
                )
            simulation.run(self._until_over(), deadline=float("inf"))
            tensors = self._parts[self._engine.result_seats(self.seats)[0].index].result()
            assert tensors is not None, "nobody has died, and who has come to the end has the result"
            return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def _boot_of(self, seat: Seat, now: Callable[[], float]) -> Callable[[World], None]:
        def boot(world: World) -> None:
            self._gathered.begin_life(seat.index)
            sitting = Sitting(world=world, run=self._run, seat=seat, seats=self.seats, peers=self._peers)
            part = self._parts[seat.index] = self._engine.part(sitting, self._materials)

            def tell(report: SeatReport) -> None:
                self._gathered.add(report, now(), self._regions.get)

            work = sit(part, tell, self._run.logging.every_seconds)
            self._tasks[seat.index] = asyncio.get_running_loop().create_task(work, name=seat.name)

        return boot

    async def _until_over(self) -> None:
        workers = [self._tasks[seat.index] for seat in self.seats if seat.kind == "worker"]
        while not all(task.done() for task in workers):
            for task in self._tasks.values():
                if task.done():
                    task.result()
            await asyncio.sleep(LOOK_SECONDS)
        for task in workers:
            task.result()
        for seat in self.seats:
            if seat.kind != "worker":
                self._gathered.add(self._parts[seat.index].report(), 0.0, self._regions.get)
