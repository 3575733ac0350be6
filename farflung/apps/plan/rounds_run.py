"""Whole runs of `systems/desync` in the simulator, with what they cost and came to."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farflung.apps.plan.curve import Curve, Point
from farflung.apps.plan.stand_in import WorkerPlace
from farflung.learn.parameters import Tensors
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Topology
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.learner import Learner
from farflung.systems.desync.messages import COORDINATOR
from farflung.systems.desync.round import Coordinator
from farflung.systems.desync.worker import Worker, WorkerReport
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.host import Host

LEADER = "coordinator"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run."""

    curve: Curve
    seconds: float
    num_steps: int
    """Credited, over all workers."""
    num_bytes: int
    """Sent by all workers."""
    reports: list[WorkerReport]


class RoundsRun:
    """One run: `measure` is asked for the loss of what all have agreed on, about `num_points` times."""

    def __init__(
        self,
        config: DesyncConfig,
        topology: Topology,
        make_learner: Callable[[int], Learner],
        measure: Callable[[Tensors], float],
        *,
        workers: Sequence[WorkerPlace],
        leader_site: str,
        step_seconds: float,
        late: Sequence[WorkerPlace] = (),
        late_seconds: float = 0.0,
        num_points: int = 40,
        num_points_max: int | None = None,
    ) -> None:
        """`workers` begin, the coordinator is at `leader_site`, `late` join after `late_seconds`; `step_seconds`: of a
        local step of a worker of speed 1. It is left after `num_points_max` points."""
        self._config = config
        self._make_learner = make_learner
        self._measure = measure
        self._workers = workers
        self._step_seconds = step_seconds
        self._late = late
        self._late_seconds = late_seconds
        self._num_points_max = num_points_max
        self._interval_steps = max(1, config.num_worker_steps // num_points)
        self._points: list[Point] = []
        self._round = 0
        self._reports: dict[str, WorkerReport] = {}
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._running: dict[str, Worker] = {}
        self.simulation = Simulation(topology=topology, keep_trace=False)
        self.simulation.node(LEADER, site=leader_site, boot=self._lead)

    def run(self) -> Outcome:
        """From the beginning to the end."""
        with self.simulation as simulation:
            for index, place in enumerate(self._workers):
                self._add(index, place)
            for index, place in enumerate(self._late, len(self._workers)):
                simulation.at(self._late_seconds, functools.partial(self._add, index, place))
            simulation.run(self._all_ended(), deadline=float("inf"))
            num_bytes = sum(simulation.traffic(name).total(sent=True) for name in self._running)
        final = self._points[-1]
        return Outcome(Curve(self._points), final.seconds, final.num_steps, num_bytes, list(self._reports.values()))

    def _lead(self, world: World) -> None:
        self._coordinator = Coordinator(self._config, world.store)
        Host(self._coordinator, world, COORDINATOR)

    def _add(self, index: int, place: WorkerPlace) -> None:
        def boot(world: World) -> None:
            learner = self._make_learner(index)
            worker = self._running[place.name] = Worker(
                world,
                learner,
                self._config,
                Address(PeerId(LEADER), COORDINATOR),
                site=place.site,
                step_seconds=self._step_seconds,
                steps_per_second=place.speed / self._step_seconds,
                on_round=lambda report: self._on_round(place.name, report),
            )
            if not self._points:
                self._points.append(Point(0.0, 0, self._measure(worker.replica.agreed_parameters)))

            async def work() -> None:
                try:
                    self._reports[place.name] = await worker.run()
                finally:
                    self._changed.set()

            self._tasks.append(asyncio.get_running_loop().create_task(work()))

        self.simulation.node(place.name, site=place.site, boot=boot, slowness=1 / place.speed)

    def _on_round(self, name: str, report: WorkerReport) -> None:
        if report.round <= self._round:
            return
        self._round = report.round
        num_steps = self._coordinator.num_credited
        if num_steps >= self._points[-1].num_steps + self._interval_steps or self._coordinator.is_over:
            replica = self._running[name].replica
            # Gradients are what is agreed on where they are averaged; the parameters are equal at all workers then.
            is_sgd = self._config.averages_gradients
            loss = self._measure(replica.learner.parameters if is_sgd else replica.agreed_parameters)
            self._points.append(Point(self.simulation.now(), num_steps, loss))
            self._changed.set()

    async def _all_ended(self) -> None:
        while len(self._reports) < len(self._running) and not self._has_enough:
            self._changed.clear()
            await self._changed.wait()
            for task in self._tasks:
                if task.done() and not task.cancelled():
                    task.result()

    @property
    def _has_enough(self) -> bool:
        return self._num_points_max is not None and len(self._points) >= self._num_points_max
