"""DES-LOC beside synchronous data parallelism and Local Adam: the loss at equal tokens, with the bytes that were sent.

Four workers of equal speed train a small real transformer in the simulator; every method has the same data, batch,
optimizer, schedule and number of local steps, and its own best learning rate. Bytes are counted where messages meet the
wire, headers and control included, over all workers. Then 4 bits with error feedback, workers that double in mid-run,
and sites whose texts differ in kind.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from bench.desloc_runs import LEARNING_RATES, NUM_WORKERS, PLAIN, Job, Row, Runs, quiet, tuned
from bench.report import Report, bench_arguments

NUM_STEPS, NUM_STEPS_QUICK = 3072, 96
PERIODS, PERIODS_QUICK = (16, 64, 256), (16,)
CHARACTERS_QUICK = 1_000_000
LOSS_SHARE_MAX = 0.01
DOUBLED_SHARE_MAX = 0.05
"""Equal tokens are fewer steps where there are more workers."""
RISE_SHARE_MAX = 0.02
"""What a loss may rise over an earlier one while newcomers settle."""
FEWER_SHARE = 0.995
"""Of what arithmetic promises: beside its parameters a model this small sends some headers and control messages."""
FEWER_IN_FOUR_BITS = 6.0
"""7.5 by 4.25 bits per value; this model's headers are a tenth of its messages."""
TUNING_SEED = 100


class Judge:
    """Makes runs, tells of each at once, and judges them against data parallelism."""

    def __init__(self, runs: Runs, report: Report) -> None:
        self._runs = runs
        self._report = report
        self._rows: dict[Job, Row] = {}

    def row(self, job: Job) -> Row:
        """The result of `job`, made once."""
        if job not in self._rows:
            began = time.perf_counter()
            row = self._rows[job] = self._runs.row(job)
            seconds = time.perf_counter() - began
            self._report.console.print(f"{job.told}: {row.loss:.4f}, {row.num_bytes:,} bytes, {seconds:.0f} s")
        return self._rows[job]

    def loss(self, job: Job, base: Job, text: str, share_max: float = LOSS_SHARE_MAX) -> None:
        """Claim that the loss of `job` is at most `share_max` above that of `base`."""
        share = self.row(job).loss / self.row(base).loss - 1
        self._report.claim(text, f"<= {share_max:.0%}", f"{share:+.2%}", share <= share_max)

    def fewer(self, job: Job, base: Job, promised: float) -> None:
        """Claim that `job` sends `promised` times fewer bytes than `base`."""
        fewer = self.row(base).num_bytes / self.row(job).num_bytes
        text = f"{job.told}: fewer bytes than {base.told}"
        self._report.claim(text, f"{promised:.1f}x", f"{fewer:.1f}x", fewer >= FEWER_SHARE * promised)

    def table(self, base: Job) -> None:
        """All runs so far beside `base`, and those on differing texts beside data parallelism on them."""
        lines: list[tuple[str, str, str, int, str]] = []
        for job, row in self._rows.items():
            beside = self._rows[replace(base, is_apart=job.is_apart)]
            share, fewer = row.loss / beside.loss - 1, beside.num_bytes / row.num_bytes
            lines.append((job.told, f"{row.loss:.4f}", f"{share:+.2%}", row.num_bytes, f"{fewer:.1f}"))
        columns = ("method", "validation loss", "over DDP's", "bytes", "times fewer than DDP")
        self._report.table("equal tokens", columns, lines)


def judge_seeds(runs: Sequence[Runs], report: Report, rare: int) -> None:
    """The first claim over several seeds: one differs from the next by as much as the methods do."""
    pair = Job("DES-LOC", rare), Job("DDP")
    judges = [Judge(one, report) for one in runs]
    shares = [judged.row(pair[0]).loss / judged.row(pair[1]).loss - 1 for judged in judges]
    text = f"DES-LOC, K_x {rare}: loss over DDP's, mean of {len(runs)} seeds"
    told = f"{fmean(shares):+.2%} ({', '.join(f'{share:+.2%}' for share in shares)})"
    report.claim(text, f"<= {LOSS_SHARE_MAX:.0%}", told, fmean(shares) <= LOSS_SHARE_MAX)


def judge(runs: Runs, report: Report, periods: tuple[int, ...]) -> None:
    """All other claims, with one seed."""
    judged = Judge(runs, report)
    base, rare = Job("DDP"), max(periods)
    ours, plain, local = Job("DES-LOC", rare), Job(PLAIN, rare), Job("Local Adam", rare)
    few, doubled = replace(ours, codec="int4"), replace(ours, num_late=NUM_WORKERS)
    judged.fewer(ours, base, rare / 1.5)
    judged.loss(plain, base, f"DES-LOC, K_x {rare}, without outer momentum: loss over DDP's")
    judged.loss(ours, local, f"DES-LOC, K_x {rare}: loss over Local Adam's")
    judged.fewer(ours, local, 2.0)
    judged.loss(few, ours, "4 bits with error feedback: loss over that without")
    judged.fewer(few, ours, FEWER_IN_FOUR_BITS)
    judged.loss(doubled, ours, "workers double in mid-run: loss over that without", DOUBLED_SHARE_MAX)
    rise, text = judged.row(doubled).rise, "workers double in mid-run: rise over an earlier loss"
    report.claim(text, f"<= {RISE_SHARE_MAX:.0%}", f"{rise:+.2%}", rise <= RISE_SHARE_MAX)
    for every in (rare, rare // 2):
        job = Job("DES-LOC", every, is_apart=True)
        judged.loss(job, replace(base, is_apart=True), f"sites' texts differ, K_x {every}: loss over DDP's on the same")
    for every in periods[-2::-1]:
        judged.loss(Job("DES-LOC", every), base, f"DES-LOC, K_x {every}: loss over DDP's")
        judged.fewer(Job("DES-LOC", every), base, every / 1.5)
    judged.table(base)


def main() -> int:
    """Measure, print and judge."""
    parser = bench_arguments("DES-LOC: loss at equal tokens against counted bytes.")
    parser.add_argument("--seeds", type=int, default=3, help="over how many seeds the first claim is judged")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep every run in FILE, and take those it has")
    parser.add_argument("--tune", action="store_true", help="only compare learning rates, on a seed of their own")
    arguments = parser.parse_args()
    quiet()
    num_steps = NUM_STEPS_QUICK if arguments.quick else NUM_STEPS
    periods = PERIODS_QUICK if arguments.quick else PERIODS
    characters_max = CHARACTERS_QUICK if arguments.quick else None
    seeds = [TUNING_SEED] if arguments.tune else list(range(1, 2 if arguments.quick else arguments.seeds + 1))
    settings = {"num_steps": num_steps, "workers": NUM_WORKERS, "seeds": seeds, "learning_rates": LEARNING_RATES}
    report = Report("desloc", settings)
    runs = [Runs(num_steps, seed, characters_max, arguments.resume) for seed in seeds]
    if arguments.tune:
        report.table("tuning", ("method", "learning rate", "validation loss"), tuned(runs[0], max(periods)))
        return 0
    judge_seeds(runs, report, max(periods))
    judge(runs[0], report, periods)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
