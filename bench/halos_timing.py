"""Hours that each method needs on the official four-region cluster, replayed in virtual time by the real engines.

Nothing is learned: a toy of 100,000 values takes the model's place, and links are as much narrower as it is smaller.
Every message of the engines crosses those links, so what the ratios show beside the published arithmetic is what our
protocols cost.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from bench.halos_cluster import BUDGET_STEPS, STEPS_PER_SECOND_MAX, site_bandwidths, topology
from bench.pretraining_rounds import rounds_run
from bench.pretraining_tree import tree_run
from bench.report import Report, bench_arguments
from farflung.apps.plan.curve import Curve
from farflung.apps.plan.stand_in import StandIn
from farflung.systems.desync.config import diloco
from farflung.systems.hierarchy.config import HierarchyConfig

NUM_VALUES = 100_000
TOY_BYTES = 4 * NUM_VALUES
QUICK_STEPS = 16_384
PUBLISHED = {"DiLoCo": 7.72, "DynUpd": 5.19, "async local SGD": 1.68, "HALoS": 1.0}
"""Hours over those of HALoS."""
PUBLISHED_HOURS = 0.676
"""Of HALoS: 98,304 steps at 40.38 a second."""
TOLERANCE = 0.03


def rounds(num_steps: int, *, is_speed_scaled: bool) -> Curve:
    """DiLoCo, H = 32, as published: an uncompressed ring over all workers, nothing overlapped."""
    config = diloco(num_steps, 32, is_speed_scaled=is_speed_scaled, bytes_per_second=site_bandwidths(TOY_BYTES))
    return (
        rounds_run(config, topology(TOY_BYTES), lambda _: StandIn(NUM_VALUES), lambda _: 0.0, num_points=num_steps)
        .run()
        .curve
    )


def halos(num_steps: int) -> Curve:
    """HALoS with the published settings, which are the defaults."""
    return tree_run(
        HierarchyConfig(budget_steps=num_steps), lambda _: StandIn(NUM_VALUES), lambda _: 0.0, num_points=num_steps
    ).run()


def async_local_sgd(num_steps: int) -> Curve:
    """One server in region 0, H = 32 scaled by speed."""
    config = HierarchyConfig(
        budget_steps=num_steps, num_local_steps=32, local_learning_rate=0.05, local_momentum=0.9, local_delay=32
    )
    run = tree_run(config, lambda _: StandIn(NUM_VALUES), lambda _: 0.0, has_global=False, num_points=num_steps)
    return run.run()


def hours(curve: Curve) -> float:
    """For the whole budget, at the rate after the first quarter of what was run."""
    points = curve.points
    begin = next(point for point in points if point.num_steps >= curve.final.num_steps / 4)
    rate = (curve.final.num_steps - begin.num_steps) / (curve.final.seconds - begin.seconds)
    return (curve.final.seconds + (BUDGET_STEPS - curve.final.num_steps) / rate) / 3600


METHODS: dict[str, Callable[[int], Curve]] = {
    "DiLoCo": lambda num_steps: rounds(num_steps, is_speed_scaled=False),
    "DynUpd": lambda num_steps: rounds(num_steps, is_speed_scaled=True),
    "async local SGD": async_local_sgd,
    "HALoS": halos,
}


def main() -> int:
    """Replay, print and judge."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    num_steps = QUICK_STEPS if arguments.quick else BUDGET_STEPS
    report = Report("halos_timing", {"num_steps": num_steps, "num_values": NUM_VALUES})
    taken: dict[str, float] = {}
    real: dict[str, float] = {}
    for name, method in METHODS.items():
        began = time.perf_counter()
        taken[name] = hours(method(num_steps))
        real[name] = time.perf_counter() - began
    report.table(
        "98,304 local steps on the official cluster",
        ("method", "hours", "steps/s", "of the ceiling", "over HALoS", "published", "real s"),
        [
            (
                name,
                taken[name],
                BUDGET_STEPS / taken[name] / 3600,
                f"{BUDGET_STEPS / taken[name] / 3600 / STEPS_PER_SECOND_MAX:.1%}",
                f"{taken[name] / taken['HALoS']:.3f}",
                published,
                real[name],
            )
            for name, published in PUBLISHED.items()
        ],
    )
    is_near = abs(taken["HALoS"] / PUBLISHED_HOURS - 1) <= TOLERANCE
    report.claim("hours of HALoS", f"{PUBLISHED_HOURS} within 3 %", f"{taken['HALoS']:.3f}", is_near)
    for name, published in list(PUBLISHED.items())[:-1]:
        ratio = taken[name] / taken["HALoS"]
        is_within = abs(ratio / published - 1) <= TOLERANCE
        report.claim(f"hours of {name} over HALoS", f"{published} within 3 %", f"{ratio:.3f}", is_within)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
