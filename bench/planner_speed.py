"""How long a plan over 4 sites, 50 machines and 6 methods of pretraining takes, by a process for each core.

Each method is a stretch of the shipping engines in the simulator, and so is each change that might help the best one.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bench.report import Report, bench_arguments
from farflung.apps.plan.command import trying
from farflung.apps.plan.plan_file import PlanFile, plan_of
from farflung.apps.plan.planning import Planned, Tried, Try, make_plan
from farflung.apps.plan.sizes import sizes_of

SECONDS_MAX = 60.0
METHODS = ("halos", "async_local_sgd", "ddp", "diloco", "desloc", "farflung")
NUM_MACHINES = {"eu": 14, "us": 16, "jp": 12, "in": 8}
DEVICES = {"eu": "A100", "us": "L4", "jp": "RTX 4090", "in": "T4"}


def plan_tables(num_machines: dict[str, int]) -> dict[str, Any]:
    """The plan, with so many machines in each site."""
    return {
        "goal": {"kind": "pretrain", "tokens": 20_000_000_000, "methods": list(METHODS)},
        "model": {"parameters": 400e6, "layers": 24, "hidden_size": 1024},
        "sites": [{"name": name} for name in num_machines],
        "machines": [{"site": name, "device": DEVICES[name], "count": count} for name, count in num_machines.items()],
        "links": [
            {"between": ["eu", "us"], "bandwidth_mbit": 400, "round_trip_ms": 90},
            {"between": ["us", "jp"], "bandwidth_mbit": 300, "round_trip_ms": 140},
        ],
        "default_link": {"bandwidth_mbit": 150, "round_trip_ms": 200},
    }


def planned_within(plan: PlanFile) -> tuple[Planned, float, list[tuple[str, float]]]:
    """The plan, its seconds, and when the answer of each try was there."""
    sizes, began_at, came = sizes_of(plan.model), time.perf_counter(), list[tuple[str, float]]()
    with trying(plan) as try_all:

        def noting(tries: Sequence[Try]) -> Iterator[Tried]:
            for (candidate, _), tried in zip(tries, try_all(tries), strict=True):
                came.append((candidate.method(), time.perf_counter() - began_at))
                yield tried

        planned = make_plan(plan, sizes, noting)
    return planned, time.perf_counter() - began_at, came


def main() -> int:
    """Make the plan once."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    num_machines = {name: count // 2 for name, count in NUM_MACHINES.items()} if arguments.quick else NUM_MACHINES
    plan = plan_of(plan_tables(num_machines))
    count = sum(num_machines.values())
    report = Report("planner_speed", {"sites": len(num_machines), "machines": count, "cores": os.cpu_count()})
    planned, seconds, came = planned_within(plan)
    report.table("answers", ("method", "seconds from the beginning"), came)
    report.table(
        "plan",
        ("method", "days", "change that would help most"),
        [(one.method(), one.seconds / 86400, one.change()) for one in planned.outcomes],
    )
    what = f"a plan over {len(num_machines)} sites, {count} machines and {len(METHODS)} methods"
    spent = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    report.table("cost", ("seconds", "seconds of a core, imports included"), [(seconds, spent)])
    report.claim(what, f"under {SECONDS_MAX:.0f} s", f"{seconds:.1f} s", seconds < SECONDS_MAX)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
