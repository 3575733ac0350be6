"""DES-LOC beside synchronous data parallelism and Local Adam: the loss at equal tokens, with the bytes that were sent.

Four workers of equal speed train a small real transformer in the simulator; every method has the same data, batch,
optimizer and number of local steps. Bytes are counted where messages meet the wire, headers and control included, over
all workers. Then 4 bits with error feedback, workers that double in mid-run, and sites whose texts differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from bench.halos_cluster import STEP_SECONDS, Machine
from bench.pretraining_rounds import DesyncRun, Outcome
from bench.report import Report, bench_arguments
from bench.small_model import Examiner, Task, read_tokens
from farflung.learn.trainer import Trainer
from farflung.sim.topology import Topology
from farflung.systems.desync.config import DesyncConfig, RoundConfig, ddp, desloc, local_adam
from farflung.systems.desync.learner import TrainerLearner

NUM_WORKERS = 4
NUM_STEPS, NUM_STEPS_QUICK = 1536, 192
PERIODS, PERIODS_QUICK = (16, 64, 256), (32,)
LOSS_SHARE_MAX = 0.01
FEWER_THAN_DDP, FEWER_THAN_LOCAL_ADAM = 170.0, 1.99
"""By arithmetic 170.7 and 2; a model this small sends some control messages beside its parameters."""
DOUBLED_SHARE_MAX = 0.05
"""Equal tokens are fewer steps where there are more workers."""
ROUNDS = RoundConfig(quorum=NUM_WORKERS)
MakeTrainer = Callable[[int], Trainer]


@dataclass(frozen=True)
class Row:
    """One run."""

    name: str
    loss: float
    num_bytes: int


def fleet(first: int, count: int) -> list[Machine]:
    """Workers of one speed, each in a site of its own."""
    return [Machine(f"worker-{number}", f"site-{number}", 1.0) for number in range(first, first + count)]


class Bench:
    """Runs of one task."""

    def __init__(self, num_steps: int, seed: int) -> None:
        self.num_steps = num_steps
        self.tokens = read_tokens(None)
        self.task = Task(self.tokens, seed, 2 * NUM_WORKERS)
        self.examiner = Examiner(self.task)

    def run(
        self, name: str, config: DesyncConfig, *, make_trainer: MakeTrainer | None = None, num_late: int = 0
    ) -> Row:
        """One run; `num_late` workers join in the middle of it."""
        make = make_trainer or self.task.trainer
        seconds = 0.0
        if num_late:  # time goes by steps: half of those of the first workers
            seconds = self.num_steps / 2 * STEP_SECONDS
        outcome: Outcome = DesyncRun(
            config,
            Topology(),
            lambda shard: TrainerLearner(make(shard)),
            self.examiner.loss,
            workers=fleet(0, NUM_WORKERS),
            late=fleet(NUM_WORKERS, num_late),
            late_seconds=seconds,
            num_points=4,
        ).run()
        return Row(name, outcome.curve.final.loss, outcome.num_bytes)

    def apart(self, shard: int) -> Trainer:
        """A worker whose text is a quarter of the whole, read by nobody else."""
        length = len(self.tokens) // NUM_WORKERS
        return replace(self.task, tokens=self.tokens[shard * length : (shard + 1) * length], num_shards=1).trainer(0)


def main() -> int:
    """Measure, print and judge."""
    parser = bench_arguments("DES-LOC: loss at equal tokens against counted bytes.")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_steps = NUM_STEPS_QUICK if arguments.quick else NUM_STEPS
    periods = PERIODS_QUICK if arguments.quick else PERIODS
    report = Report("desloc", {"num_steps": num_steps, "workers": NUM_WORKERS, "seed": arguments.seed})
    bench = Bench(num_steps, arguments.seed)
    budget = num_steps * NUM_WORKERS
    base = bench.run("DDP", ddp(budget, rounds=ROUNDS))
    rows = [base]
    local: dict[int, Row] = {}
    ours: dict[int, Row] = {}
    for every in periods:
        local[every] = bench.run(f"Local Adam, {every}", local_adam(budget, every, rounds=ROUNDS))
        ours[every] = bench.run(f"DES-LOC, {every}:{3 * every}:{6 * every}", desloc(budget, every, rounds=ROUNDS))
        rows += [local[every], ours[every]]
    rare = max(periods)
    coded = desloc(budget, rare, codec="int4", moment_codec="int4", rounds=ROUNDS)
    few = bench.run(f"DES-LOC, {rare}, 4 bits with error feedback", coded)
    doubled = bench.run(f"DES-LOC, {rare}, workers double", desloc(budget, rare), num_late=NUM_WORKERS)
    alone = bench.run("DDP, sites' texts differ", ddp(budget, rounds=ROUNDS), make_trainer=bench.apart)
    differing = bench.run(f"DES-LOC, {rare}, sites' texts differ", desloc(budget, rare), make_trainer=bench.apart)
    rows += [few, doubled, alone, differing]
    table = [
        (row.name, row.loss, f"{row.loss / base.loss - 1:+.2%}", row.num_bytes, base.num_bytes / row.num_bytes)
        for row in rows
    ]
    report.table("equal tokens", ("method", "validation loss", "over DDP's", "bytes", "times fewer"), table)
    for every in periods:
        share = ours[every].loss / base.loss - 1
        report.claim(f"DES-LOC, K_x {every}: loss over DDP's", "<= 1 %", f"{share:.2%}", share <= LOSS_SHARE_MAX)
    fewer = base.num_bytes / ours[rare].num_bytes
    target = FEWER_THAN_DDP if rare == PERIODS[-1] else 0.98 / (1 / rare + 1 / (3 * rare) + 1 / (6 * rare))
    report.claim(f"DES-LOC, K_x {rare}: fewer bytes than DDP", f">= {target:.0f}x", f"{fewer:.1f}x", fewer >= target)
    fewer = local[rare].num_bytes / ours[rare].num_bytes
    text = f"DES-LOC, K_x {rare}: fewer bytes than Local Adam"
    report.claim(text, f">= {FEWER_THAN_LOCAL_ADAM:g}x", f"{fewer:.2f}x", fewer >= FEWER_THAN_LOCAL_ADAM)
    share = few.loss / ours[rare].loss - 1
    report.claim(
        "4 bits with error feedback: loss over that without", "<= 1 %", f"{share:.2%}", share <= LOSS_SHARE_MAX
    )
    share = doubled.loss / ours[rare].loss - 1
    report.claim(
        "workers double in mid-run: loss over that without", "<= 5 %", f"{share:.2%}", share <= DOUBLED_SHARE_MAX
    )
    share = differing.loss / alone.loss - 1
    report.claim("sites' texts differ: loss over DDP's on the same", "<= 1 %", f"{share:.2%}", share <= LOSS_SHARE_MAX)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
