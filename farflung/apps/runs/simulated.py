"""`--simulate`: every seat is a node of one simulation, with real computation in virtual time."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from farflung.apps.runs.job import AnyJob, Materials
from farflung.apps.runs.lead import Gathered
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.part import Part, Sitting, sit
from farflung.apps.runs.run import Run
from farflung.apps.runs.seats import WORKER, Seat
from farflung.apps.runs.sites import LinkSettings
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

    def __init__(self, job: AnyJob, run: Run, materials: Materials, gathered: Gathered) -> None:
        self._job = job
        self._run = run
        self._materials = materials
        self._gathered = gathered
        self._engine = job.engine(run)
        self.seats = tuple(gathered.seats)
        self._peers = {seat.index: PeerId(seat.name) for seat in self.seats}
        self._parts: dict[int, Part] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._regions = {seat.name: seat.region for seat in self.seats}

    def work(self) -> Any:
        """Run to the end of the budget; the run's result.

        Raises:
            FarflungError: a worker was refused.
        """
        with Simulation(seed=self._run.run.seed, topology=topology_of(self._run.links), keep_trace=False) as simulation:
            for seat in self.seats:
                slowness = 1 / seat.speed if seat.kind == WORKER else 1.0
                simulation.node(
                    seat.name, site=seat.region, slowness=slowness, boot=self._boot_of(seat, simulation.now)
                )
            simulation.run(self._until_over(), deadline=float("inf"))
            result = self._parts[self._engine.result_seats(self.seats)[0].index].result()
            assert result is not None, "nobody has died, and who has come to the end has the result"
            return result

    def _boot_of(self, seat: Seat, now: Callable[[], float]) -> Callable[[World], None]:
        def boot(world: World) -> None:
            self._gathered.begin_life(seat.index)
            sitting = Sitting(
                world=world,
                run=self._run,
                seat=seat,
                seats=self.seats,
                peers=self._peers,
                charter=self._job.charter(self._run, self._materials, seat, None),
            )
            part = self._parts[seat.index] = self._engine.part(sitting, self._materials)

            def tell(report: SeatReport) -> None:
                self._gathered.add(report, now(), self._regions.get)

            work = sit(part, tell, self._run.logging.every_seconds)
            self._tasks[seat.index] = asyncio.get_running_loop().create_task(work, name=seat.name)

        return boot

    async def _until_over(self) -> None:
        workers = [self._tasks[seat.index] for seat in self.seats if seat.kind == WORKER]
        while not all(task.done() for task in workers):
            for task in self._tasks.values():
                if task.done():
                    task.result()
            await asyncio.sleep(LOOK_SECONDS)
        for task in workers:
            task.result()
        for seat in self.seats:
            if seat.kind != WORKER:
                self._gathered.add(self._parts[seat.index].report(), self._gathered.history.seconds, self._regions.get)
