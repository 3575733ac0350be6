"""A whole tree of parameter servers in the simulator: a global server, regions with a local one each, and workers."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from farflung.learn.learner import Learner
from farflung.learn.parameters import Tensors, copies
from farflung.sim.faults import Faults
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Topology
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.data import Data
from farflung.systems.hierarchy.global_server import GlobalServer
from farflung.systems.hierarchy.local_server import LocalServer
from farflung.systems.hierarchy.memory import Memory
from farflung.systems.hierarchy.messages import ACTOR
from farflung.systems.hierarchy.report import WorkerReport
from farflung.systems.hierarchy.worker import Worker
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.host import Host

GLOBAL = "global"


@dataclass(frozen=True)
class Descended:
    """What some steps came to."""

    loss: float
    num_steps: int
    num_tokens: int


class Quadratic:
    """Gradient descent on |x - target|^2 / 2, without noise."""

    def __init__(self, target: Tensors, rate: float = 0.1) -> None:
        self.target = target
        self.rate = rate
        self.parameters: Tensors = {name: torch.zeros_like(tensor) for name, tensor in target.items()}
        self.progress: list[float] = []

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Descended:
        loss = 0.0
        for step in range(num_steps):
            self.progress.append(progress_of_step(step))
            for name, tensor in self.parameters.items():
                error = tensor - self.target[name]
                loss += float((error**2).sum()) / 2 / num_steps
                tensor -= self.rate * error
        return Descended(loss, num_steps, 10 * num_steps)


def targets(seed: int, sizes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Random tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


@dataclass
class SimulatedHierarchy:
    """Node names: "global", "<region>-server", "<region>-<worker>"; sites are regions.

    Without a global server, give one region and `has_global=False`. Restarted nodes have what their disks hold.
    """

    config: HierarchyConfig
    regions: Mapping[str, Sequence[float]]
    """By region: slowness of each of its workers."""
    learner: Callable[[str, int], Learner]
    """(region, worker) -> what learns there; made anew when the worker's process restarts."""
    parameters: Tensors
    """The initial model."""
    has_global: bool = True
    global_site: str | None = None
    """Default: the first region."""
    data: Callable[[str, int], Data] | None = None
    memory: Callable[[Any], Memory | None] = lambda learner: None
    """What a learner's optimizer remembers over crashes."""
    speeds: Callable[[str, int], float] = lambda region, worker: 0.0
    """Steps per second told to the servers; 0: measured."""
    seconds_per_step: float = 0.1
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    topology: Topology | None = None
    keep_trace: bool = True

    def __post_init__(self) -> None:
        self.simulation = Simulation(
            seed=self.seed, faults=self.faults, topology=self.topology, keep_trace=self.keep_trace
        )
        self.global_server: GlobalServer | None = None
        self.servers: dict[str, LocalServer] = {}
        self.workers: dict[str, Worker] = {}
        """The newest life of each."""
        self.reports: dict[str, WorkerReport] = {}
        """Of workers that ended."""
        self.lives: list[Worker] = []
        self._tasks: list[asyncio.Task[None]] = []
        if self.has_global:
            site = self.global_site or next(iter(self.regions))
            self.simulation.node(GLOBAL, site=site, boot=self._boot_global)
        for region in self.regions:
            self.add_server(region)
        for region, slownesses in self.regions.items():
            for number, slowness in enumerate(slownesses):
                self.add_worker(region, number, slowness)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.simulation.__exit__(*exception)  # pyright: ignore[reportArgumentType]

    def add_server(self, region: str) -> None:
        """A region's local server joins."""
        self.simulation.node(f"{region}-server", site=region, boot=lambda world: self._boot_local(region, world))

    def add_worker(self, region: str, number: int, slowness: float = 1.0) -> str:
        """A worker joins; returns the name of its node."""
        name = f"{region}-{number}"
        self.simulation.node(
            name, site=region, slowness=slowness, boot=lambda world: self._boot_worker(region, number, world)
        )
        return name

    def _boot_global(self, world: World) -> Host:
        self.global_server = GlobalServer.open(world, self.config, copies(self.parameters))
        return Host(self.global_server, world, ACTOR)

    def _boot_local(self, region: str, world: World) -> Host:
        above = Address(PeerId(GLOBAL), ACTOR) if self.has_global else None
        self.servers[region] = LocalServer.open(world, self.config, copies(self.parameters), name=region, above=above)
        return Host(self.servers[region], world, ACTOR)

    def _boot_worker(self, region: str, number: int, world: World) -> None:
        name, learner = f"{region}-{number}", self.learner(region, number)
        worker = Worker(
            world,
            self.config,
            learner,
            name=name,
            server=Address(PeerId(f"{region}-server"), ACTOR),
            data=None if self.data is None else self.data(region, number),
            memory=self.memory(learner),
            speed=self.speeds(region, number),
            seconds_per_step=self.seconds_per_step,
        )
        self.workers[name] = worker
        self.lives.append(worker)

        async def work() -> None:
            self.reports[name] = await worker.run()

        self._tasks.append(asyncio.get_running_loop().create_task(work(), name=name))

    def run(self, deadline: float = 10_000.0) -> dict[str, WorkerReport]:
        """Until every worker has ended; their reports by name."""

        async def wait() -> None:
            while len(self.reports) < len(self.workers):  # noqa: ASYNC110 (those it waits for come and go)
                await asyncio.sleep(0.5)

        self.simulation.run(wait(), deadline=deadline)
        return self.reports
