"""Time to a loss, and the final loss, of every method on the official cluster: a small real transformer, real engines.

All methods have the same model, data, inner optimizer, budget of local steps and links; each has a grid of the same
number of settings (`halos_methods`), tried with a seed of its own, and is judged over other seeds with the setting that
reaches a loss soonest that the best "DynUpd, 4 bits" just reaches. The target is a loss that this rival reaches with
every seed: the highest of its final losses, plus `TARGET_MARGIN`; who never reaches it takes "inf". HALoS and DiLoCo
are compared at the higher of their own final losses, plus the same. Links are scaled so that rounds take as long as
with the 70M-parameter model (`pretraining_rounds.wire_bytes`).

A whole run takes about an hour of a core: `--processes` spreads it, and with `--resume FILE` a stopped one goes on
where it was.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from bench.halos_cluster import STEPS_PER_SECOND_MAX
from bench.halos_methods import GRIDS, OURS, RIVAL, SETTINGS, THIN
from bench.halos_runs import Job, Runs
from bench.report import Report, bench_arguments
from farflung.apps.plan.curve import Curve

NUM_STEPS, NUM_STEPS_QUICK = 8192, 640
TUNING_SEED = 100
TARGET_MARGIN = 0.03
SPEEDUP_MIN = 1.3
QUICK_METHODS = ("DiLoCo", RIVAL, "HALoS", OURS)
"""With `--quick`, each with the first setting of its grid: nothing is tuned then."""

JobOf = Callable[[str, int, int], Job]
"""From method, number of its setting, and seed."""


def tune(runs: Runs, job_of: JobOf, num_settings: int, report: Report) -> dict[str, int]:
    """The best of the first `num_settings` of each method's grid."""
    jobs = [
        job_of(name, number, TUNING_SEED)
        for name, grid in GRIDS.items()
        for number in range(min(num_settings, len(grid)))
    ]
    curves = runs.curves(jobs)
    target = min(curves[job].final.loss for job in jobs if job.method == RIVAL) + TARGET_MARGIN
    report.table(
        f"tuning, seed {TUNING_SEED}: to a validation loss of {target:.3f}",
        ("method", "setting", "seconds to target", "final loss", "seconds"),
        [
            (
                job.method,
                SETTINGS[job.method][job.number].told,
                curves[job].seconds_to(target),
                f"{curves[job].final.loss:.4f}",
                curves[job].final.seconds,
            )
            for job in jobs
        ],
    )
    return {
        name: min((job for job in jobs if job.method == name), key=lambda job: _merit(curves[job], target)).number
        for name in GRIDS
    }


def _merit(curve: Curve, target: float) -> tuple[float, float]:
    return curve.seconds_to(target), curve.final.loss


def judge(report: Report, curves: dict[str, list[Curve]], target: float) -> None:
    """The claims, over the seeds."""
    taken = {name: fmean(curve.seconds_to(target) for curve in runs) for name, runs in curves.items()}
    final = {name: fmean(curve.final.loss for curve in runs) for name, runs in curves.items()}
    pair = ("DiLoCo", "HALoS")
    both = max(final[name] for name in pair) + TARGET_MARGIN
    diloco_seconds, halos_seconds = (fmean(curve.seconds_to(both) for curve in curves[name]) for name in pair)
    halos = diloco_seconds / halos_seconds
    report.claim(f"HALoS reaches {both:.3f} sooner than DiLoCo", ">= 7x", f"{halos:.2f}x", halos >= 7)
    second = min((name for name in taken if name != OURS), key=lambda name: (taken[name], final[name]))
    speedup = taken[second] / taken[OURS]
    report.claim(
        f"ours reaches the target sooner than the best other ({second})",
        f">= {SPEEDUP_MIN}x",
        f"{speedup:.2f}x",
        speedup >= SPEEDUP_MIN,
    )
    is_lower = final[OURS] <= final[second]
    report.claim("at no higher final loss", f"<= {final[second]:.4f}", f"{final[OURS]:.4f}", is_lower)


def show(report: Report, curves: dict[str, list[Curve]], best: dict[str, int], target: float) -> None:
    """One row for each method."""
    report.table(
        f"to a validation loss of {target:.3f}, virtual seconds by seed",
        ("method", "setting", "seconds to target", "final loss", "seconds", "steps/s"),
        [
            (
                name,
                SETTINGS[name][best[name]].told,
                " ".join(f"{curve.seconds_to(target):.0f}" for curve in runs),
                " ".join(f"{curve.final.loss:.4f}" for curve in runs),
                fmean(curve.final.seconds for curve in runs),
                fmean(curve.final.num_steps / curve.final.seconds for curve in runs),
            )
            for name, runs in curves.items()
        ],
    )


def claim_thin(report: Report, curve: Curve) -> None:
    """Ours keeps the device busy where bandwidth is a tenth."""
    share = curve.final.num_steps / curve.final.seconds / STEPS_PER_SECOND_MAX
    report.claim(
        f"ours, a tenth of the bandwidth: share of the compute ceiling (final loss {curve.final.loss:.4f})",
        ">= 90 %",
        f"{share:.1%}",
        share >= 0.9,
    )


def main(arguments_given: Sequence[str] | None = None) -> int:
    """Tune, train, print and judge."""
    parser = bench_arguments(__doc__ or "")
    parser.add_argument("--text", type=Path, metavar="FILE", help="train on this text instead of the standard library")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="local steps over all workers; fewer with --quick")
    parser.add_argument("--settings", type=int, default=4, help="how many of each method's grid are tried")
    parser.add_argument("--seeds", type=int, default=3, help="over how many seeds methods are judged")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="take runs from FILE, and add those made to it")
    arguments = parser.parse_args(arguments_given)
    num_steps = NUM_STEPS_QUICK if arguments.quick else arguments.steps
    seeds = [1] if arguments.quick else list(range(1, arguments.seeds + 1))
    settings = {"num_steps": num_steps, "seeds": seeds, "text": str(arguments.text or "corpus")}
    report = Report("halos_learning", settings | {"settings": 0 if arguments.quick else arguments.settings})
    runs = Runs(arguments.processes, arguments.resume)
    job_of = functools.partial(Job, num_steps=num_steps, text=arguments.text, is_compiled=not arguments.quick)
    best: dict[str, int] = dict.fromkeys(QUICK_METHODS, 0)
    if not arguments.quick:
        best = tune(runs, job_of, arguments.settings, report)
    jobs = {name: [job_of(name, best[name], seed) for seed in seeds] for name in best}
    thin = job_of(THIN, 0, seeds[0], bandwidth=0.1)
    made = runs.curves([*(job for of_method in jobs.values() for job in of_method), thin])
    curves = {name: [made[job] for job in of_method] for name, of_method in jobs.items()}
    target = max(curve.final.loss for curve in curves[RIVAL]) + TARGET_MARGIN
    show(report, curves, best, target)
    judge(report, curves, target)
    claim_thin(report, made[thin])
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
