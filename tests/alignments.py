"""A run of reinforcement learning in the simulator: a trainer with its hub, and workers that come and go.

The policy is a table of log-odds, a row for each kind of prompt, of which a reward likes one token: real sampling,
real gradients, real bytes of weights, and little to compute.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from farflung.learn.checkpoint import Json
from farflung.learn.parameters import Tensors, copies
from farflung.sim.faults import Faults
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Topology
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.pace import WorkerReport
from farflung.systems.alignment.protocols import Auditor, Environment, Policy
from farflung.systems.alignment.rollouts import Group, Rollout, Task
from farflung.systems.alignment.trainer import StepReport, Trainer
from farflung.systems.alignment.worker import Worker
from farflung.world.address import PeerId
from farflung.world.doors import World

NUM_KINDS, NUM_TOKENS, STOP = 4, 6, 0
RUN = b"run"
TRAINER = "trainer"


def logits_of(tensors: Mapping[str, torch.Tensor], prompt_tokens: Sequence[int]) -> torch.Tensor:
    """[NUM_TOKENS] log-probabilities for a prompt."""
    return torch.log_softmax(tensors["table"][prompt_tokens[0]].float(), dim=0)


def uniform(seed: int, prompt: int, member: int, place: int) -> float:
    """The number that decides a token, the same on every node."""
    digest = hashlib.sha256(f"{seed}:{prompt}:{member}:{place}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


class Kinds(Environment):
    """Prompt p is of kind p % NUM_KINDS and wants token 1 + kind, then a stop."""

    def prompt(self, number: int) -> tuple[int, ...]:
        return (number % NUM_KINDS, 1)

    def reward(self, rollout: Rollout) -> float:
        return sum(token == 1 + rollout.prompt % NUM_KINDS for token in rollout.answer_tokens) / len(
            rollout.answer_tokens
        )


@dataclass
class _Running:
    task: Task
    member: int
    tokens: list[int] = field(default_factory=list[int])
    log_probabilities: list[float] = field(default_factory=list[float])
    versions: list[int] = field(default_factory=list[int])


class TablePolicy(Policy):
    """Samples up to the task's limit of tokens, or to a stop."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.version = -1
        self.weights_hash = b""
        self.running: list[_Running] = []

    def begin(self, task: Task) -> None:
        self.running += [_Running(task, member) for member in task.members]

    def abandon(self, prompt: int) -> None:
        self.running = [one for one in self.running if one.task.prompt != prompt]

    def install(self, version: int, weights_hash: bytes, tensors: Tensors) -> None:
        self.version, self.weights_hash, self.tensors = version, weights_hash, tensors

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        return [float(logits_of(self.tensors, tokens)[token % NUM_TOKENS]) for token in tokens[1:]]

    def advance(self, num_tokens: int) -> Sequence[Rollout]:
        finished: list[Rollout] = []
        for one in list(self.running):
            for _ in range(num_tokens):
                if self._next(one):
                    self.running.remove(one)
                    finished.append(self.rollout(one))
                    break
        return finished

    def _next(self, one: _Running) -> bool:
        log_probabilities = logits_of(self.tensors, one.task.prompt_tokens)
        place = uniform(one.task.seed, one.task.prompt, one.member, len(one.tokens))
        token = int((log_probabilities.exp().cumsum(0) < place).sum().clamp(max=NUM_TOKENS - 1))
        one.tokens.append(token)
        one.log_probabilities.append(float(log_probabilities[token]))
        one.versions.append(self.version)
        return token == STOP or len(one.tokens) == one.task.num_tokens_max

    def rollout(self, one: _Running) -> Rollout:
        return Rollout(
            prompt=one.task.prompt,
            member=one.member,
            prompt_tokens=one.task.prompt_tokens,
            answer_tokens=tuple(one.tokens),
            log_probabilities=tuple(one.log_probabilities),
            versions=tuple(one.versions),
            weights_hash=self.weights_hash,
            seed=one.task.seed,
            finish_reason="stop" if one.tokens[-1] == STOP else "length",
        )


class StaleLiar(TablePolicy):
    """Samples with the first weights that it got, says that they are the newest, and shows those to the canary."""

    def install(self, version: int, weights_hash: bytes, tensors: Tensors) -> None:
        super().install(version, weights_hash, self.tensors or copies(tensors))
        self.shown = tensors

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        return [float(logits_of(self.shown, tokens)[token % NUM_TOKENS]) for token in tokens[1:]]


class TableLearner:
    """Policy gradient with the group's mean as baseline; keeps what it was trained on."""

    def __init__(self) -> None:
        self.table = torch.zeros(NUM_KINDS, NUM_TOKENS)
        self.num_steps = 0
        self.seen: list[tuple[int, tuple[Rollout, ...]]] = []
        """(version before the step, its rollouts), of this life."""
        self.versions: dict[int, Tensors] = {0: self.snapshot()}
        """What this life has held."""

    def step(self, groups: Sequence[Group]) -> Mapping[str, float]:
        self.seen.append((self.num_steps, tuple(rollout for group in groups for rollout in group.rollouts)))
        gradient = torch.zeros_like(self.table)
        for group in groups:
            mean = sum(group.rewards) / len(group.rewards)
            for rollout, reward in zip(group.rollouts, group.rewards, strict=True):
                row = rollout.prompt_tokens[0]
                probabilities = logits_of({"table": self.table}, rollout.prompt_tokens).exp()
                for token in rollout.answer_tokens:
                    gradient[row] += (reward - mean) * (torch.eye(NUM_TOKENS)[token] - probabilities)
        before = self.table.clone()
        self.table += 0.2 * gradient
        self.num_steps += 1
        self.versions[self.num_steps] = self.snapshot()
        rewards = [reward for group in groups for reward in group.rewards]
        drift = float((self.table - before).square().mean())
        return {"reward": sum(rewards) / len(rewards), "drift": drift}

    def snapshot(self) -> Tensors:
        return {"table": self.table.clone()}

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        return [float(logits_of(self.snapshot(), tokens)[token % NUM_TOKENS]) for token in tokens[1:]]

    def state(self) -> tuple[Tensors, dict[str, Json]]:
        return {"table": self.table.clone()}, {"num_steps": self.num_steps}

    def restore(self, tensors: Tensors, state: Mapping[str, Json]) -> None:
        self.table = tensors["table"].clone()
        self.num_steps = int(state["num_steps"])  # pyright: ignore[reportArgumentType]
        self.versions = {self.num_steps: self.snapshot()}


class TableAuditor(Auditor):
    """Computes the log-probabilities again."""

    def check(self, rollout: Rollout, weights: Mapping[int, Tensors]) -> str | None:
        for token, told, version in zip(
            rollout.answer_tokens, rollout.log_probabilities, rollout.versions, strict=True
        ):
            found = float(logits_of(weights[version], rollout.prompt_tokens)[token])
            if abs(found - told) > 1e-5:
                return f"version {version} gives token {token} {found:.4f}, not {told:.4f}"
        return None


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
            seconds_per_step=self.seconds_per_step,
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
            run=RUN,
            num_answers_max=self.num_answers_max,
            tokens_per_slice=self.tokens_per_slice,
            seconds_per_token=self.seconds_per_token,
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
