"""Runs of the alignment benchmark: one place, or a trainer and rollout nodes in virtual time; real weights and bytes.

Arithmetic is real, and so is every message; what is modelled is how long sampling, steps and links take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import torch

from bench.alignment_task import ANSWERS_PER_PROMPT, PROMPTS_PER_STEP, Task
from farflung.learn.parameters import Tensors
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Link, Topology
from farflung.systems.alignment.charges import Charges
from farflung.systems.alignment.colocated import Step, train_colocated
from farflung.systems.alignment.config import AlignmentConfig, PublishConfig
from farflung.systems.alignment.trainer import StepReport, Trainer
from farflung.systems.alignment.worker import Worker
from farflung.world.address import PeerId
from farflung.world.doors import World

NUM_WORKERS = 2
SAMPLING_SECONDS = 1.0
"""What the workers together need for the answers of one step."""
STEP_SECONDS = 1.0
BYTES_PER_SECOND = 2.5e6
"""20 Mbit/s."""
STEPS_PER_POINT = 10
TRAINER = "trainer"
COLOCATED = -1


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training."""

    name: str
    staleness_max: int
    """S; `COLOCATED`: sampling and training by turns in one place."""
    loss: str = "dppo"
    drift_budget: float = 0.0

    def config(self, num_steps: int, seed: int, delay_seconds: float, answer_tokens: int) -> AlignmentConfig:
        """The run's conversation; waiting times fit the delay."""
        steps_per_version = self.staleness_max + 1 if self.drift_budget else 1
        return AlignmentConfig(
            num_steps=num_steps,
            prompts_per_step=PROMPTS_PER_STEP,
            answers_per_prompt=ANSWERS_PER_PROMPT,
            num_tokens_max=answer_tokens,
            staleness_max=max(0, self.staleness_max),
            seed=seed,
            silence_seconds=15.0 + 10 * delay_seconds,
            lease_seconds=120.0,
            steps_per_checkpoint=num_steps,
            publish=PublishConfig(steps_per_version=max(1, steps_per_version), drift_budget=self.drift_budget),
        )


@dataclass(frozen=True, slots=True)
class Job:
    """One run."""

    arm: Arm
    seed: int
    delay_seconds: float
    num_steps: int
    folder: Path
    """Of the pretrained model, named by what it was trained on."""
    subject: str = "sums"

    @property
    def key(self) -> str:
        """What names it in a file of runs; delay is nothing to who samples and trains in one place."""
        delay = 0.0 if self.arm.staleness_max == COLOCATED else self.delay_seconds
        return f"{self.folder.name} {self.arm} seed {self.seed}, {delay} s, {self.num_steps} steps"


@dataclass(frozen=True, slots=True)
class Point:
    """One moment of a run."""

    seconds: float
    num_steps: int
    accuracy: float


@dataclass(slots=True)
class Curve:
    """What one run came to."""

    points: list[Point] = field(default_factory=list[Point])
    idle_seconds: float = 0.0
    """Of the trainer."""
    num_bytes: int = 0
    """Of weights that a node fetches."""
    num_versions: int = 0
    staleness: dict[int, int] = field(default_factory=dict[int, int])
    num_stale: int = 0
    """Answers that came too old."""

    @property
    def final(self) -> Point:
        """The end."""
        return self.points[-1]

    @property
    def seconds_per_step(self) -> float:
        """Over the whole run."""
        return self.final.seconds / self.final.num_steps

    def accuracy_at(self, seconds: float) -> float:
        """Of the last point before then."""
        return [point.accuracy for point in self.points if point.seconds <= seconds][-1]

    def first(self, accuracy: float) -> Point | None:
        """The first point that reaches it."""
        return next((point for point in self.points if point.accuracy >= accuracy), None)


Moment = tuple[float, int, Tensors]


def run(job: Job) -> Curve:
    """Make one run."""
    torch.set_num_threads(1)
    task = Task(job.folder, job.seed, job.subject, job.arm.loss)
    learner = task.learner()
    moments: list[Moment] = [(0.0, 0, learner.snapshot())]
    curve = Curve()
    config = job.arm.config(job.num_steps, job.seed, job.delay_seconds, task.answer_tokens)
    if job.arm.staleness_max == COLOCATED:

        def told(step: Step) -> None:
            num_steps = step.number + 1
            if num_steps % STEPS_PER_POINT == 0 or num_steps == job.num_steps:
                moments.append((num_steps * (SAMPLING_SECONDS + STEP_SECONDS), num_steps, learner.snapshot()))

        train_colocated(task.policy(), learner, task.environment, config, told=told)
        curve.staleness = {0: job.num_steps * PROMPTS_PER_STEP * ANSWERS_PER_PROMPT}
    else:
        _simulate(job, task, learner, config, moments, curve)
    judge = task.judge()
    for seconds, num_steps, weights in moments:
        curve.points.append(Point(seconds, num_steps, judge(weights, num_steps)))
    return curve


def _simulate(job: Job, task: Task, learner: Any, config: AlignmentConfig, moments: list[Moment], curve: Curve) -> None:
    """Trainer and workers at sites of their own."""
    between = Link(latency_seconds=job.delay_seconds, bytes_per_second=BYTES_PER_SECOND)
    with Simulation(seed=job.seed, topology=Topology(between=between), keep_trace=False) as simulation:
        running: list[asyncio.Task[Any]] = []
        trainers: list[Trainer] = []

        def report(step: StepReport) -> None:
            curve.idle_seconds += sum(step.idle_seconds.values())
            curve.num_bytes += step.num_weights_bytes
            curve.num_versions += step.num_weights_bytes > 0
            if step.version % STEPS_PER_POINT == 0 or step.version == job.num_steps:
                moments.append((simulation.now(), step.version, learner.snapshot()))

        def start(work: Coroutine[Any, Any, Any]) -> None:
            running.append(asyncio.get_running_loop().create_task(work))

        def boot_trainer(world: World) -> None:
            settings: dict[str, Any] = {
                "run": b"bench",
                "report": report,
                "charges": Charges(step_seconds=STEP_SECONDS),
            }
            trainers.append(Trainer(world, config, learner, task.environment, **settings))
            start(trainers[0].run())

        def boot_worker(world: World) -> None:
            name = str(world.network.peer)
            settings: dict[str, Any] = {"name": name, "hub": PeerId(TRAINER), "run": b"bench"}
            settings |= {"num_answers_max": answers_at_once(job.arm), "tokens_per_slice": task.answer_tokens}
            num_tokens = PROMPTS_PER_STEP * ANSWERS_PER_PROMPT * task.answer_tokens / NUM_WORKERS
            settings["charges"] = Charges(token_seconds=SAMPLING_SECONDS / num_tokens)
            start(Worker(world, config, task.policy(), **settings).run())

        simulation.node(TRAINER, site=TRAINER, boot=boot_trainer)
        for number in range(NUM_WORKERS):
            simulation.node(f"worker-{number}", site=f"site-{number}", boot=boot_worker)

        async def wait() -> None:
            await asyncio.gather(*running)

        simulation.run(wait(), deadline=1e6)
        state = trainers[0].ledger.state
        curve.staleness, curve.num_stale = dict(state.staleness), state.num_stale


def answers_at_once(arm: Arm) -> int:
    """A worker's share of a step; of two where it need not wait for weights."""
    share = PROMPTS_PER_STEP * ANSWERS_PER_PROMPT // NUM_WORKERS
    return share if arm.staleness_max == 0 else 2 * share


class Runs:
    """Makes runs, several at a time, and keeps them in a file, so that a stopped benchmark goes on."""

    def __init__(self, num_processes: int, file: Path | None) -> None:
        self._num_processes = num_processes
        self._file = file
        self._made: dict[str, Curve] = {}
        if file is not None and file.exists():
            for line in file.read_bytes().splitlines():
                key, curve = msgspec.json.decode(line, type=tuple[str, Curve])
                self._made[key] = curve

    def curves(self, jobs: Sequence[Job]) -> dict[Job, Curve]:
        """Those of these jobs."""
        missing = [job for job in jobs if job.key not in self._made]
        if self._num_processes == 1:
            for job in missing:
                self._keep(job, run(job))
        else:
            with ProcessPoolExecutor(self._num_processes, mp_context=get_context("spawn")) as pool:
                for job, curve in zip(missing, pool.map(run, missing), strict=True):
                    self._keep(job, curve)
        return {job: self._made[job.key] for job in jobs}

    def _keep(self, job: Job, curve: Curve) -> None:
        self._made[job.key] = curve
        if self._file is not None:
            with self._file.open("ab") as file:
                file.write(msgspec.json.encode((job.key, curve)) + b"\n")
