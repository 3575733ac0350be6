"""Time to a loss, and the final loss, of every method on the official cluster: a small real transformer, real engines.

All methods have the same model, data, inner optimizer, budget of local steps and links; each has a grid of the same
number of settings (`GRIDS`), tried with a seed of its own, and is judged over other seeds with the setting that reaches
the target soonest. The target is the final loss of the best "DynUpd, 4 bits" in that grid, plus `TARGET_MARGIN`; who
never reaches it takes "inf". HALoS and DiLoCo are compared at the higher of their own final losses, plus the same.
Links are scaled so that rounds take as long as with the 70M-parameter model (`pretraining_rounds.wire_bytes`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from bench.halos_cluster import STEPS_PER_SECOND_MAX, site_bandwidths, topology
from bench.pretraining_rounds import DesyncRun, wire_bytes
from bench.pretraining_tree import TreeRun
from bench.report import Report, bench_arguments
from bench.small_model import Curve, Examiner, Task, read_tokens
from farflung.learn.parameters import num_bytes
from farflung.learn.rules import Nesterov
from farflung.systems.desync.config import DesyncConfig, RoundConfig, diloco, farflung
from farflung.systems.desync.learner import TrainerLearner
from farflung.systems.hierarchy.config import HierarchyConfig

NUM_STEPS, NUM_STEPS_QUICK = 8192, 640
NUM_WORKERS = 16
TUNING_SEED = 100
TARGET_MARGIN = 0.03
SPEEDUP_MIN = 1.3
Config = DesyncConfig | HierarchyConfig
OURS = "farflung"
RIVAL = "DynUpd, 4 bits"


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of a grid."""

    told: str
    config: Callable[[int], Config]
    """From the budget in local steps."""
    has_global: bool = True


def _rounds(every: int, rate: float, momentum: float, codec: str, *, is_scaled: bool) -> Setting:
    outer = Nesterov(learning_rate=rate, momentum=momentum)
    return Setting(
        f"H {every}, outer {rate}/{momentum}",
        lambda budget: diloco(
            budget, every, outer=outer, is_speed_scaled=is_scaled, codec=codec, site_codec=codec, rounds=ROUNDS
        ),
    )


def _grid_of_rounds(codec: str, *, is_scaled: bool) -> list[Setting]:
    points = [(32, 0.7, 0.9), (32, 1.0, 0.5), (16, 1.0, 0.5), (32, 1.0, 0.3)]
    return [_rounds(*point, codec, is_scaled=is_scaled) for point in points]


def _tree(rate: float, pushes: int, codec: str) -> Setting:
    return Setting(
        f"eta_g {rate}, K {pushes}",
        lambda budget: HierarchyConfig(
            budget_steps=budget, global_learning_rate=rate, updates_per_push=pushes, codec_up_global=codec
        ),
    )


def _grid_of_trees(codec: str) -> list[Setting]:
    return [_tree(rate, pushes, codec) for rate, pushes in ((0.15, 32), (0.2, 32), (0.17, 16), (0.17, 64))]


def _flat(rate: float) -> Setting:
    def config(budget: int) -> HierarchyConfig:
        return HierarchyConfig(
            budget_steps=budget, num_local_steps=32, local_learning_rate=rate, local_momentum=0.9, local_delay=32
        )

    return Setting(f"eta {rate}", config, has_global=False)


def _ours(num_fragments: int, rate: float, codec: str) -> Setting:
    outer = Nesterov(learning_rate=rate, momentum=0.0)
    return Setting(
        f"{num_fragments} fragments, outer {rate}, {codec}",
        lambda budget: farflung(budget, num_fragments, outer=outer, codec=codec, rounds=ROUNDS),
    )


ROUNDS = RoundConfig(quorum=NUM_WORKERS)
GRIDS: dict[str, list[Setting]] = {
    "DiLoCo": _grid_of_rounds("raw", is_scaled=False),
    "DynUpd": _grid_of_rounds("raw", is_scaled=True),
    RIVAL: _grid_of_rounds("int4", is_scaled=True),
    "async local SGD": [_flat(rate) for rate in (0.035, 0.05, 0.07, 0.1)],
    "HALoS": _grid_of_trees("raw"),
    "HALoS, 4 bits": _grid_of_trees("int4"),
    OURS: [_ours(4, 1.0, "int4"), _ours(4, 1.25, "int4"), _ours(2, 1.25, "int4"), _ours(4, 1.25, "int2")],
}
THIN = _ours(16, 1.25, "int2")
"""Ours where links have a tenth of the bandwidth."""


def train(setting: Setting, task: Task, num_steps: int, bandwidth: float = 1.0) -> Curve:
    """One run, from the initial weights of the task's seed."""
    config, examiner = setting.config(num_steps), Examiner(task)
    if isinstance(config, HierarchyConfig):
        run = TreeRun(config, task.trainer, examiner.loss, has_global=setting.has_global, bandwidth=bandwidth)
        return run.run()
    scaled = wire_bytes(config, num_bytes(task.trainer(0).parameters) // 4)
    config = replace(config, bytes_per_second=site_bandwidths(scaled, bandwidth))
    links = topology(scaled, bandwidth)
    return DesyncRun(config, links, lambda shard: TrainerLearner(task.trainer(shard)), examiner.loss).run().curve


def tune(task: Task, num_steps: int, num_settings: int) -> tuple[dict[str, Setting], float]:
    """The best of the first `num_settings` of each method's grid, and the target."""
    curves = {
        name: [(setting, train(setting, task, num_steps)) for setting in grid[:num_settings]]
        for name, grid in GRIDS.items()
    }
    target = min(curve.final.loss for _, curve in curves[RIVAL]) + TARGET_MARGIN
    best = {name: min(tried, key=lambda one: _merit(one[1], target))[0] for name, tried in curves.items()}
    return best, target


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


def show(report: Report, curves: dict[str, list[Curve]], best: dict[str, Setting], target: float) -> None:
    """One row for each method."""
    report.table(
        f"to a validation loss of {target:.3f}, virtual seconds by seed",
        ("method", "setting", "seconds to target", "final loss", "seconds", "steps/s"),
        [
            (
                name,
                best[name].told,
                " ".join(f"{curve.seconds_to(target):.0f}" for curve in runs),
                " ".join(f"{curve.final.loss:.4f}" for curve in runs),
                fmean(curve.final.seconds for curve in runs),
                fmean(curve.final.num_steps / curve.final.seconds for curve in runs),
            )
            for name, runs in curves.items()
        ],
    )


def claim_thin(report: Report, task: Task, num_steps: int) -> None:
    """Ours keeps the device busy where bandwidth is a tenth."""
    final = train(THIN, task, num_steps, bandwidth=0.1).final
    share = final.num_steps / final.seconds / STEPS_PER_SECOND_MAX
    report.claim(
        "ours, a tenth of the bandwidth: share of the compute ceiling", ">= 90 %", f"{share:.1%}", share >= 0.9
    )


def main(arguments_given: Sequence[str] | None = None) -> int:
    """Tune, train, print and judge."""
    parser = bench_arguments(__doc__ or "")
    parser.add_argument("--text", type=Path, metavar="FILE", help="train on this text instead of the standard library")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="local steps over all workers; fewer with --quick")
    parser.add_argument("--settings", type=int, default=4, help="how many of each method's grid are tried")
    parser.add_argument("--seeds", type=int, default=3, help="over how many seeds methods are judged")
    arguments = parser.parse_args(arguments_given)
    torch.set_num_threads(1)
    num_steps = NUM_STEPS_QUICK if arguments.quick else arguments.steps
    seeds = [1] if arguments.quick else list(range(1, arguments.seeds + 1))
    tokens = read_tokens(arguments.text)
    report = Report(
        "halos_learning",
        {
            "num_steps": num_steps,
            "seeds": seeds,
            "text": str(arguments.text or "corpus"),
            "settings": arguments.settings,
        },
    )
    tasks = [Task(tokens, seed, NUM_WORKERS) for seed in seeds]
    best, target = {name: grid[0] for name, grid in GRIDS.items()}, float("nan")
    if not arguments.quick:
        best, target = tune(Task(tokens, TUNING_SEED, NUM_WORKERS), num_steps, arguments.settings)
    curves = {name: [train(setting, task, num_steps) for task in tasks] for name, setting in best.items()}
    if arguments.quick:  # nothing is tuned
        target = curves[RIVAL][0].final.loss + TARGET_MARGIN
    show(report, curves, best, target)
    judge(report, curves, target)
    claim_thin(report, tasks[0], num_steps)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
