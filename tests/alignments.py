"""A run of reinforcement learning in the simulator: a trainer with its hub, and workers that come and go."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from farflung.sim.faults import Faults
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Topology
from farflung.systems.alignment.charges import Charges
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.pace import WorkerReport
from farflung.systems.alignment.protocols import Auditor, Environment, Policy
from farflung.systems.alignment.trainer import StepReport, Trainer
from farflung.systems.alignment.worker import Worker
from farflung.world.address import PeerId
from farflung.world.doors import World
from tests.tables import Kinds, TableLearner, TablePolicy

RUN = b"run"
TRAINER = "trainer"


@dataclass
class SimulatedAlignment:
    """Node names: "trainer" and those of the workers."""

    config: AlignmentConfig
    workers: Mapping[str, float]
    """Name -> slowness."""
    policies: Mapping[str, Callable[[], Policy]] = field(default_factory=dict[str, Callable[[], Policy]])
    """Of workers that are not honest."""
    environment: Environment = field(default_factory=Kinds)
    auditor: Auditor | None = None
    sites: Mapping[str, str] = field(default_factory=dict[str, str])
    seconds_per_token: float = 0.01
    seconds_per_step: float = 0.5
    num_answers_max: int = 8
    tokens_per_slice: int = 2
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    topology: Topology | None = None

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.simulation = Simulation(seed=self.seed, faults=self.faults, topology=self.topology)
        self.learners: list[TableLearner] = []
        """One for each life of the trainer."""
        self.trainers: list[Trainer] = []
        self.steps: list[StepReport] = []
        self.reports: dict[str, WorkerReport] = {}
        self.running: dict[str, Worker] = {}
        self.errors: dict[str, Exception] = {}
        self.run_of: dict[str, bytes] = {}
        """Of workers that belong to another run."""
        self.is_done = False
        self._tasks: list[asyncio.Task[None]] = []
        self.simulation.node(TRAINER, site=self.sites.get(TRAINER, "hub"), boot=self._boot_trainer)
        for name, slowness in self.workers.items():
            self.add_worker(name, slowness)

    def __enter__(self) -> "SimulatedAlignment":
        return self

    def __exit__(self, *exception: object) -> None:
        self.simulation.__exit__(*exception)  # pyright: ignore[reportArgumentType]

    def add_worker(self, name: str, slowness: float = 1.0) -> None:
        """A worker joins."""
        site = self.sites.get(name, "hub")
        self.simulation.node(name, site=site, slowness=slowness, boot=self._boot_worker)

    def _boot_trainer(self, world: World) -> None:
        self.learners.append(TableLearner())
        trainer = Trainer(
            world,
            self.config,
            self.learners[-1],
            self.environment,
            run=RUN,
            auditor=self.auditor,
            report=self.steps.append,
            charges=Charges(step_seconds=self.seconds_per_step),
        )
        self.trainers.append(trainer)

        async def work() -> None:
            try:
                await trainer.run()
                self.is_done = True
            except Exception as error:  # noqa: BLE001  the tests look at what went wrong
                self.errors[TRAINER] = error

        self._start(work(), TRAINER)

    def _boot_worker(self, world: World) -> None:
        name = str(world.network.peer)
        worker = Worker(
            world,
            self.config,
            self.policies.get(name, TablePolicy)(),
            name=name,
            hub=PeerId(TRAINER),
            run=self.run_of.get(name, RUN),
            num_answers_max=self.num_answers_max,
            tokens_per_slice=self.tokens_per_slice,
            charges=Charges(token_seconds=self.seconds_per_token),
        )
        self.running[name] = worker

        async def work() -> None:
            try:
                self.reports[name] = await worker.run()
            except Exception as error:  # noqa: BLE001  the tests look at what went wrong
                self.errors[name] = error

        self._start(work(), name)

    def _start(self, coroutine: "asyncio._CoroutineLike[None]", name: str) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(coroutine, name=name))

    def run(self, deadline: float = 10_000.0) -> None:
        """Until the trainer is done or has failed, and the workers that are not banned have ended."""

        async def wait() -> None:
            while not self._has_ended():  # noqa: ASYNC110 (they come and go)
                await asyncio.sleep(0.25)

        self.simulation.run(wait(), deadline=deadline)

    def _has_ended(self) -> bool:
        if TRAINER in self.errors:
            return True
        return self.is_done and all(name in self.reports or name in self.errors for name in self.running)

    @property
    def trainer(self) -> Trainer:
        """Of the newest life."""
        return self.trainers[-1]

    @property
    def table(self) -> torch.Tensor:
        """The newest life's weights."""
        return self.learners[-1].table
