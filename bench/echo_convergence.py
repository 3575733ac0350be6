"""Rollouts apart from training against both in one place: accuracy, speed and staleness of ECHO's two protocols.

A small pretrained model learns to be sure of two-digit sums, or of its way over a frozen lake, a game of up to eight
turns (`--subject lake`). Sampling and training in one place is the baseline; Sequential, bounded staleness of 1, 2 and
4 steps, publishing by drift, and a run without any correction are compared with it, over links of 20 Mbit/s with a
delay in each direction. Arithmetic, messages and bytes are real, the time is virtual: the workers together sample a
step's answers in a second, and a step takes a second.

With sums it sharpens: the model's most likely answer was right before. The learning rate of 5e-4 makes one step of
staleness worth hundreds of those with which large models are trained, so what is lost here is lost sooner than
there.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from bench.alignment_runs import COLOCATED, Arm, Curve, Job, Runs
from bench.alignment_task import SUBJECTS, model_folder
from bench.report import Report, bench_arguments

COLOCATED_ARM = Arm("co-located", COLOCATED)
SEQUENTIAL = Arm("Sequential", 0)
ASYNCHRONOUS = [Arm(f"S={bound}", bound) for bound in (1, 2, 4)]
ADAPTIVE = Arm("adaptive, S=4", 4, drift_budget=0.5)
UNCORRECTED = Arm("S=4, no correction", 4, "reinforce")
ARMS = [COLOCATED_ARM, SEQUENTIAL, *ASYNCHRONOUS, ADAPTIVE, UNCORRECTED]
QUICK_ARMS = [COLOCATED_ARM, SEQUENTIAL, ASYNCHRONOUS[1], UNCORRECTED]
JUDGED_DELAY_SECONDS = 1.0
LOST_POINTS_MAX = 2.0
JUDGED_SEEDS_MIN = 5
"""Of fewer runs the loss is only told: one differs from the next by as much as the claim allows."""
SPEEDUP_MIN = 1.8
THRESHOLD = 0.8
NUM_RESAMPLES = 2000


def interval(values: Sequence[float]) -> str:
    """The mean with its 95 % bootstrap interval over seeds."""
    stream = random.Random("bootstrap")
    means = sorted(fmean(stream.choices(values, k=len(values))) for _ in range(NUM_RESAMPLES))
    low, high = means[int(0.025 * NUM_RESAMPLES)], means[int(0.975 * NUM_RESAMPLES)]
    return f"{fmean(values):.1%} [{low:.1%}, {high:.1%}]"


def final(curves: Sequence[Curve]) -> list[float]:
    """Accuracy at the end, by seed."""
    return [curve.final.accuracy for curve in curves]


def step_seconds(curves: Sequence[Curve]) -> float:
    """Mean over seeds."""
    return fmean(curve.seconds_per_step for curve in curves)


def show(report: Report, delay: float, curves: dict[str, list[Curve]]) -> None:
    """A row for each arm."""
    soonest = min(curve.final.seconds for each in curves.values() for curve in each)
    rows: list[tuple[object, ...]] = []
    for name, each in curves.items():
        reached = [point for curve in each if (point := curve.first(THRESHOLD)) is not None]
        ages = [age for curve in each for age, count in curve.staleness.items() for _ in range(count)]
        rows.append(
            (
                name,
                interval(final(each)),
                f"{fmean(curve.accuracy_at(soonest) for curve in each):.1%}",
                f"{step_seconds(each):.2f}",
                f"{fmean(point.num_steps for point in reached):.0f} ({len(reached)})" if reached else "-",
                f"{fmean(point.seconds for point in reached):.0f}" if reached else "-",
                f"{fmean(curve.idle_seconds / curve.final.seconds for curve in each):.0%}",
                f"{fmean(curve.num_bytes / max(1, curve.num_versions) for curve in each) / 1e3:.0f} kB",
                f"{fmean(ages):.2f}",
                f"{sum(curve.num_stale for curve in each)}",
            )
        )
    columns = ("arm", "accuracy at equal rollouts", f"at {soonest:.0f} s", "seconds a step")
    columns += (f"steps to {THRESHOLD:.0%}", "seconds", "trainer idle", "a sync", "mean age", "too old")
    report.table(f"delay {delay:g} s, {len(next(iter(curves.values())))} seeds", columns, rows)


def judge(report: Report, curves: dict[str, list[Curve]]) -> None:
    """The claims, at the judged delay."""
    colocated, sequential = curves[COLOCATED_ARM.name], curves[SEQUENTIAL.name]
    base = 100 * fmean(final(colocated))
    lost = base - 100 * fmean(final(sequential))
    # Batches differ, so that last bits of log-probabilities do.
    report.claim(
        f"Sequential: accuracy at equal rollouts, of {base:.1f} %", "<= 1 point lost", f"{lost:+.1f}", lost <= 1
    )
    for arm in (arm for arm in ASYNCHRONOUS if arm.name in curves):
        each = curves[arm.name]
        lost = base - 100 * fmean(final(each))
        is_claimed = arm.staleness_max <= 2 and len(each) >= JUDGED_SEEDS_MIN
        target = f"<= {LOST_POINTS_MAX:g} points lost" if is_claimed else "told"
        report.claim(
            f"{arm.name}: accuracy at equal rollouts, of {base:.1f} %",
            target,
            f"{lost:+.1f} points lost",
            lost <= LOST_POINTS_MAX or not is_claimed,
        )
        speedup = step_seconds(sequential) / step_seconds(each)
        report.claim(
            f"{arm.name}: steps a second over Sequential's, delay {JUDGED_DELAY_SECONDS:g} s",
            f">= {SPEEDUP_MIN}x",
            f"{speedup:.2f}x",
            speedup >= SPEEDUP_MIN,
        )
    bound = UNCORRECTED.name.partition(",")[0]
    corrected = curves.get(bound, curves[ASYNCHRONOUS[1].name])
    worse = 100 * (fmean(final(corrected)) - fmean(final(curves[UNCORRECTED.name])))
    report.claim("no correction loses against the same staleness with it", "> 2 points", f"{worse:+.1f}", worse > 2)


def main(arguments_given: Sequence[str] | None = None) -> int:
    """Run all arms at all delays, print and judge."""
    parser = bench_arguments(__doc__ or "")
    parser.add_argument("--subject", choices=sorted(SUBJECTS), default="sums", help="what is learned")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of a run; 20 with --quick")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each arm; 1 with --quick")
    parser.add_argument("--delays", type=float, nargs="+", default=[1.0, 0.0], help="seconds, one way")
    parser.add_argument("--processes", type=int, default=1, help="runs at the same time")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="take runs from FILE, and add those made to it")
    arguments = parser.parse_args(arguments_given)
    num_steps, num_seeds, delays, arms = arguments.steps, arguments.seeds, arguments.delays, ARMS
    if arguments.quick:
        num_steps, num_seeds, delays, arms = 20, 1, [JUDGED_DELAY_SECONDS], QUICK_ARMS
    folder = model_folder(arguments.subject)
    report = Report(
        "echo_convergence", {"subject": arguments.subject, "num_steps": num_steps, "seeds": num_seeds, "delays": delays}
    )
    runs = Runs(arguments.processes, arguments.resume)
    for delay in delays:
        jobs = [
            Job(arm, seed, delay, num_steps, folder, arguments.subject) for seed in range(num_seeds) for arm in arms
        ]
        made = runs.curves(jobs)
        curves = {arm.name: [made[job] for job in jobs if job.arm == arm] for arm in arms}
        show(report, delay, curves)
        if delay == JUDGED_DELAY_SECONDS:
            judge(report, curves)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
