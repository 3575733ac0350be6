"""Whole runs of `systems/hierarchy` in the simulator, with what they cost and came to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from farflung.apps.plan.curve import Curve, Point
from farflung.apps.plan.stand_in import WorkerPlace
from farflung.learn.learner import Learner
from farflung.learn.parameters import Tensors, copies
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Topology
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.global_server import GlobalServer
from farflung.systems.hierarchy.local_server import LocalServer
from farflung.systems.hierarchy.messages import ACTOR
from farflung.systems.hierarchy.worker import Worker
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.host import Host

GLOBAL = "global"
LOOK_SECONDS = 0.25
"""How often the root is looked at."""


class TreeRun:
    """One run: `measure` is asked for the loss of the root's model about `num_points` times.

    With a global server every region has a local one; without, all workers have one server, in the first region
    (asynchronous local SGD).
    """

    def __init__(
        self,
        config: HierarchyConfig,
        links: Topology,
        make_learner: Callable[[int], Learner],
        measure: Callable[[Tensors], float],
        *,
        workers: Sequence[WorkerPlace],
        step_seconds: float,
        has_global: bool = True,
        num_points: int = 40,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """The root is at the site of the first worker; `step_seconds`: of a local step of a worker of speed 1."""
        self._config = config
        self._make_learner = make_learner
        self._measure = measure
        self._workers = workers
        self._sites = list(dict.fromkeys(place.site for place in workers))
        self._step_seconds = step_seconds
        self._has_global = has_global
        self._look_seconds = look_seconds
        self._interval_steps = max(1, config.budget_steps // num_points)
        self._learners = [make_learner(index) for index in range(len(workers))]
        self._initial = copies(self._learners[0].parameters)
        self._ended = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.simulation = Simulation(topology=links, keep_trace=False)

    def run(self) -> Curve:
        """From the beginning until the root has all steps of the budget."""
        with self.simulation as simulation:
            if self._has_global:
                simulation.node(GLOBAL, site=self._sites[0], boot=self._boot_global)
            for site in self._sites if self._has_global else self._sites[:1]:
                self._add_server(site)
            for index, place in enumerate(self._workers):
                self._add_worker(index, place)
            return simulation.run(self._watch(), deadline=float("inf"))

    def _boot_global(self, world: World) -> None:
        self._root = GlobalServer.open(world, self._config, copies(self._initial))
        Host(self._root, world, ACTOR)

    def _add_server(self, site: str) -> None:
        def boot(world: World) -> None:
            above = Address(PeerId(GLOBAL), ACTOR) if self._has_global else None
            server = LocalServer.open(world, self._config, copies(self._initial), name=site, above=above)
            if not self._has_global:
                self._root = server
            Host(server, world, ACTOR)

        self.simulation.node(server_name(site), site=site, boot=boot)

    def _add_worker(self, index: int, place: WorkerPlace) -> None:
        def boot(world: World) -> None:
            worker = Worker(
                world,
                self._config,
                self._learners[index],
                name=place.name,
                server=Address(PeerId(server_name(place.site if self._has_global else self._sites[0])), ACTOR),
                speed=place.speed / self._step_seconds,
                seconds_per_step=self._step_seconds,
            )

            async def work() -> None:
                await worker.run()

            self._tasks.append(asyncio.get_running_loop().create_task(work()))

        self.simulation.node(place.name, site=place.site, boot=boot, slowness=1 / place.speed)

    async def _watch(self) -> Curve:
        points = [Point(0.0, 0, self._measure(self._initial))]
        while (num_steps := self._root.state.counters.num_steps) < self._config.budget_steps:
            if num_steps >= points[-1].num_steps + self._interval_steps:
                points.append(self._point(num_steps))
            for task in self._tasks:
                if task.done() and not task.cancelled():
                    task.result()
            await asyncio.sleep(self._look_seconds)
        return Curve([*points, self._point(num_steps)])

    def _point(self, num_steps: int) -> Point:
        return Point(self.simulation.now(), num_steps, self._measure(self._root.state.model.parameters))


def server_name(site: str) -> str:
    """Of the node of a site's server."""
    return f"{site}-server"
