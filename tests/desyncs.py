"""A whole run of `systems/desync` in the simulator: a coordinator, and workers whose learners descend on quadratics."""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from farflung.learn.parameters import Tensors
from farflung.learn.shards import cursor_of, shards_of
from farflung.sim.faults import Faults
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Topology
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.learner import Learner
from farflung.systems.desync.messages import COORDINATOR
from farflung.systems.desync.progress import WorkerReport
from farflung.systems.desync.round import Coordinator
from farflung.systems.desync.worker import Worker
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.host import Host

LEADER = "leader"


@dataclass
class Steps:
    """What some local steps came to."""

    loss: float
    num_steps: int
    num_tokens: int


class Quadratic:
    """Noisy descent on |A (x - b)|^2 / 2 with torch's optimizer; the noise follows from the seed and the step."""

    def __init__(
        self,
        seed: int,
        *,
        optimizer: str = "adam",
        length: int = 300,
        learning_rate: float = 0.05,
        noise: float = 0.3,
        momentum: float = 0.9,
    ) -> None:
        self.seed = seed
        self._noise = noise
        start = torch.Generator().manual_seed(7)
        half = length // 2
        self.parameters: Tensors = {
            "one": torch.randn(half, generator=start, requires_grad=True),
            "two": torch.randn(length - half, generator=start, requires_grad=True),
        }
        own = torch.Generator().manual_seed(seed)
        self._target = {name: torch.randn(one.shape, generator=own) for name, one in self.parameters.items()}
        self._scale = {name: torch.linspace(0.5, 1.5, one.numel()) for name, one in self.parameters.items()}
        self._optimizer, self._names = _optimizer(optimizer, list(self.parameters.values()), learning_rate, momentum)
        self.num_batches = 0
        self._num_steps = 0

    @property
    def moments(self) -> dict[str, Tensors]:
        state = self._optimizer.state
        return {
            name: {which: state[one][key] for which, one in self.parameters.items()}
            for name, key in self._names.items()
        }

    @property
    def num_steps(self) -> int:
        return self._num_steps

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        self._num_steps = num_steps
        for state in self._optimizer.state.values():
            if "step" in state:
                state["step"].fill_(num_steps)

    def compute_gradients(self) -> Steps:
        noise = torch.Generator().manual_seed(self.seed * 100_003 + self.num_batches)
        self.num_batches += 1
        loss = torch.zeros(())
        for name, one in self.parameters.items():
            away = self._scale[name] * (one - self._target[name])
            loss = loss + (away**2).sum() / 2 + (one * torch.randn(one.shape, generator=noise)).sum() * self._noise
        for one in self.parameters.values():
            one.grad = None
        loss.backward()
        return Steps(loss.item(), 1, 10)

    def apply(self, progress: float) -> None:
        self._optimizer.step()
        self._num_steps += 1

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Steps:
        losses: list[float] = []
        for step in range(num_steps):
            losses.append(self.compute_gradients().loss)
            self.apply(progress_of_step(step))
        return Steps(sum(losses) / num_steps, num_steps, 10 * num_steps)


def _optimizer(
    name: str, parameters: list[torch.Tensor], learning_rate: float, momentum: float
) -> tuple[torch.optim.Optimizer, dict[str, str]]:
    """torch's optimizer with its state there from the beginning, and the names of its moments."""
    if name == "adam":
        adam = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.95))
        for one in parameters:
            zeros = {"exp_avg": torch.zeros_like(one), "exp_avg_sq": torch.zeros_like(one)}
            adam.state[one] = {"step": torch.zeros(()), **{key: zero.detach() for key, zero in zeros.items()}}
        return adam, {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}
    sgd = torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)
    if momentum:
        for one in parameters:
            sgd.state[one]["momentum_buffer"] = torch.zeros_like(one).detach()
    return sgd, {"momentum": "momentum_buffer"} if momentum else {}


@dataclass
class Samples:
    """Shards whose samples are only counted; a learner draws one for each step."""

    num_shards: int
    order: int = 1
    drawn: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def cursor(self) -> dict[str, int]:
        return cursor_of(self.order, self.drawn)

    def seek(self, cursor: Mapping[str, int]) -> None:
        self.drawn = shards_of(cursor, self.num_shards)

    def draw(self) -> tuple[int, int]:
        """(shard, place in it) of the next sample."""
        assert self.drawn, "nothing was dealt"
        shard = min(self.drawn, key=lambda index: (self.drawn[index], index))
        self.drawn[shard] += 1
        return shard, self.drawn[shard] - 1


class Reader(Quadratic):
    """A quadratic that draws a sample at each step."""

    def __init__(self, seed: int, num_shards: int, order: int = 1, **settings: Any) -> None:
        super().__init__(seed, **settings)
        self.samples = Samples(num_shards, order)
        self.read: list[tuple[int, int]] = []

    def compute_gradients(self) -> Steps:
        self.read.append(self.samples.draw())
        return super().compute_gradients()


@dataclass
class SimulatedDesync:
    """Workers by name; use in `with`. `reports` and `learners` hold those of each worker's newest life."""

    config: DesyncConfig
    workers: tuple[str, ...] = ("w0", "w1")
    sites: Mapping[str, str] = field(default_factory=dict[str, str])
    """By worker; `leader`, which hosts the coordinator alone, is at the first worker's."""
    speeds: Mapping[str, float] = field(default_factory=dict[str, float])
    """By worker, 1 being a step in `step_seconds`."""
    step_seconds: float = 0.1
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    topology: Topology | None = None
    make_learner: Callable[[str], Learner] = lambda name: Quadratic(int(name[1:]))
    on_round: Callable[[str, WorkerReport], None] = lambda name, report: None
    keep_trace: bool = True
    is_speed_declared: bool = True

    def __post_init__(self) -> None:
        if self.config.rounds.num_members_at_start == 1:  # those that boot together begin together
            rounds = dataclasses.replace(self.config.rounds, num_members_at_start=len(self.workers))
            self.config = dataclasses.replace(self.config, rounds=rounds)
        self.simulation = Simulation(
            seed=self.seed, faults=self.faults, topology=self.topology, keep_trace=self.keep_trace
        )
        self.learners: dict[str, Any] = {}
        self.running: dict[str, Worker] = {}
        self.reports: dict[str, WorkerReport] = {}
        self.coordinator: Coordinator
        self._tasks: list[asyncio.Task[None]] = []
        self.simulation.node(LEADER, site=self.site(self.workers[0]), boot=self._lead)
        for name in self.workers:
            self.add(name)

    def __enter__(self) -> "SimulatedDesync":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.simulation.__exit__(*exception)

    def site(self, name: str) -> str:
        """Where a worker is."""
        return self.sites.get(name, "site")

    def add(self, name: str) -> None:
        """Boot one more worker, now."""
        self.simulation.node(
            name,
            site=self.site(name),
            boot=lambda world: self._work(name, world),
            slowness=1 / self.speeds.get(name, 1.0),
        )

    def _lead(self, world: World) -> Host:
        self.coordinator = Coordinator(self.config, world.store)
        return Host(self.coordinator, world, COORDINATOR)

    def _work(self, name: str, world: World) -> None:
        self.learners[name] = self.make_learner(name)
        self.reports.pop(name, None)
        worker = Worker(
            world,
            self.learners[name],
            self.config,
            Address(PeerId(LEADER), COORDINATOR),
            site=self.site(name),
            step_seconds=self.step_seconds,
            steps_per_second=self.speeds.get(name, 1.0) / self.step_seconds if self.is_speed_declared else 0.0,
            data=getattr(self.learners[name], "samples", None),
            on_round=lambda report: self.on_round(name, report),
        )
        self.running[name] = worker

        async def work() -> None:
            self.reports[name] = await worker.run()

        self._tasks.append(asyncio.get_running_loop().create_task(work(), name=f"worker {name}"))

    def run(self, *, deadline: float | None = None, names: tuple[str, ...] = ()) -> dict[str, WorkerReport]:
        """Until every worker of `names`, or else every one that is alive, has ended; their reports."""
        simulation = self.simulation

        def awaited() -> list[str]:
            return list(names) or [name for name in self.running if simulation.is_alive(name)]

        async def all_ended() -> None:
            while any(name not in self.reports for name in awaited()):
                self._raise_errors()
                await asyncio.sleep(1.0)

        simulation.run(all_ended(), deadline=deadline)
        return self.reports

    def _raise_errors(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    def parameters(self, name: str) -> torch.Tensor:
        """All parameters of a worker as one vector."""
        return torch.cat([one.detach().reshape(-1) for one in self.learners[name].parameters.values()])
