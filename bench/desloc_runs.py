"""The runs of `desloc`: four equal workers on one small task under any method, kept in a file to resume from."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bench import desloc_text
from bench.halos_cluster import STEP_SECONDS
from bench.pretraining_rounds import rounds_run
from bench.small_model import OPTIMIZER, Examiner, Task
from farflung.apps.plan.curve import Curve
from farflung.apps.plan.stand_in import WorkerPlace
from farflung.learn.parameters import Tensors
from farflung.learn.rules import Descent, Nesterov
from farflung.learn.schedule import WarmupStableDecay
from farflung.learn.trainer import Trainer
from farflung.sim.topology import Topology
from farflung.systems.desync.config import DesyncConfig, RoundConfig, ddp, desloc, local_adam
from farflung.systems.desync.learner import TrainerLearner

NUM_WORKERS = 4
PLAIN = "DES-LOC without outer momentum"
BATCH_SEQUENCES = 64
"""Of 32 tokens each. The smaller they are, the more data parallelism makes of its four times larger batch: Adam divides
by the noise that only it has averaged, and at 4 sequences no period comes within 8 % of it."""
LEARNING_RATES = {"DDP": 32e-3, "Local Adam": 16e-3, "DES-LOC": 16e-3, PLAIN: 16e-3}
"""The best found for DDP and DES-LOC; Local Adam, which differs in periods alone, takes DES-LOC's."""
OUTER_MOMENTUM = {"Local Adam": 0.5, "DES-LOC": 0.5, PLAIN: 0.0}
"""Of SERVEROPT, Nesterov at rate 1."""
SCHEDULE = WarmupStableDecay(warmup=0.05, decay=0.8, floor=0.0)


@dataclass(frozen=True, slots=True)
class Job:
    """One run."""

    method: str
    """A key of `LEARNING_RATES`."""
    every: int = 1
    """K_x."""
    codec: str = "raw"
    num_late: int = 0
    """Workers that join in the middle."""
    is_apart: bool = False
    """Whether every site has a part of the text of its own."""
    learning_rate: float | None = None
    """Other than the method's own."""

    @property
    def told(self) -> str:
        """For people."""
        periods = {"DDP": "", "Local Adam": f" {self.every}"}
        told = self.method + periods.get(self.method, f" {self.every}:{3 * self.every}:{6 * self.every}")
        told += ", 4 bits with error feedback" if self.codec == "int4" else ""
        told += ", workers double" if self.num_late else ""
        told += ", sites' texts differ" if self.is_apart else ""
        return told + (f", rate {self.learning_rate:g}" if self.learning_rate else "")

    def config(self, budget: int) -> DesyncConfig:
        """The method's, for `budget` local steps over all workers."""
        rounds = RoundConfig(quorum=NUM_WORKERS, num_members_at_start=NUM_WORKERS)
        if self.method == "DDP":
            return ddp(budget, codec=self.codec, rounds=rounds)
        make = local_adam if self.method == "Local Adam" else desloc
        momentum = OUTER_MOMENTUM[self.method]
        outer = Nesterov(learning_rate=1.0, momentum=momentum) if momentum else Descent()
        return make(budget, self.every, codec=self.codec, moment_codec=self.codec, outer=outer, rounds=rounds)


@dataclass(frozen=True, slots=True)
class Row:
    """What a run came to."""

    loss: float
    """Nats per token on text that nobody trained on."""
    num_bytes: int
    """Sent by all workers."""
    rise: float
    """The greatest of a later loss over one measured before it, in the second half of the run; below 0 if none rose."""


class Runs:
    """Makes runs of `num_steps` local steps for each of the four workers, or takes those that the file `kept` has."""

    def __init__(self, num_steps: int, seed: int, characters_max: int | None, kept: Path | None) -> None:
        self._num_steps = num_steps
        self._characters_max = characters_max
        self._settings = [num_steps, seed, characters_max, BATCH_SEQUENCES]
        self._kept = kept
        self._known: dict[str, Row] = {}
        if kept is not None and kept.exists():
            for line in kept.read_text().splitlines():
                entry = json.loads(line)
                self._known[entry["key"]] = Row(**entry["row"])
        text = desloc_text.whole(characters_max)
        self._task = Task(
            text, seed, 2 * NUM_WORKERS, BATCH_SEQUENCES, OPTIMIZER, SCHEDULE, hidden_size=16, num_layers=1, num_heads=1
        )

    def row(self, job: Job) -> Row:
        """The result of one job."""
        rate = job.learning_rate or LEARNING_RATES[job.method]
        key = json.dumps([*self._settings, asdict(job) | {"learning_rate": rate}])
        if key not in self._known:
            self._known[key] = row = self._make(job, rate)
            if self._kept is not None:
                with self._kept.open("a") as file:
                    file.write(json.dumps({"key": key, "row": asdict(row)}) + "\n")
        return self._known[key]

    def _make(self, job: Job, rate: float) -> Row:
        task = replace(self._task, optimizer=replace(OPTIMIZER, learning_rate=rate))
        make, measure = _apart(task, self._characters_max) if job.is_apart else (task.trainer, Examiner(task).loss)
        outcome = rounds_run(
            job.config(self._num_steps * NUM_WORKERS),
            Topology(),
            lambda shard: TrainerLearner(make(shard)),
            measure,
            workers=_machines(0, NUM_WORKERS),
            late=_machines(NUM_WORKERS, job.num_late),
            late_seconds=self._num_steps / 2 * STEP_SECONDS,
            num_points=12,
        ).run()
        return Row(outcome.curve.final.loss, outcome.num_bytes, _rise(outcome.curve))


def _machines(first: int, count: int) -> list[WorkerPlace]:
    """Workers of one speed, each in a site of its own."""
    return [WorkerPlace(f"worker-{number}", f"site-{number}", 1.0) for number in range(first, first + count)]


def _rise(curve: Curve) -> float:
    losses = [point.loss for point in curve.points if 2 * point.num_steps >= curve.final.num_steps]
    return max(later / earlier - 1 for earlier, later in itertools.combinations(losses, 2))


def _apart(task: Task, characters_max: int | None) -> tuple[Callable[[int], Trainer], Callable[[Tensors], float]]:
    """Workers that each read one part of the text alone, and the mean loss over all parts."""
    tasks = [replace(task, tokens=part, num_shards=2) for part in desloc_text.parts(characters_max)]
    examiners = [Examiner(one) for one in tasks]

    def trainer(shard: int) -> Trainer:
        return tasks[shard % NUM_WORKERS].trainer(shard // NUM_WORKERS)

    def loss(parameters: Tensors) -> float:
        return sum(examiner.loss(parameters) for examiner in examiners) / len(examiners)

    return trainer, loss


def tuned(runs: Runs, every: int) -> list[tuple[str, float, float]]:
    """Each method's loss at each of four rates: method, rate, loss."""
    rates = (8e-3, 16e-3, 32e-3, 56e-3)
    grid = itertools.product(LEARNING_RATES, rates)
    jobs = [Job(method, 1 if method == "DDP" else every, learning_rate=rate) for method, rate in grid]
    return [(job.method, job.learning_rate or 0.0, runs.row(job).loss) for job in jobs]


def quiet() -> None:
    """One thread: the models are too small for more."""
    torch.set_num_threads(1)
