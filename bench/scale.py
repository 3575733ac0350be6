"""How directory, routing and trees of HALoS grow with their nodes: time, memory, messages, and what breaks first.

The shipping roles run in the simulator, each size in a process of its own. A growth of 1 means that ten times the nodes
cost ten times as much. Limits are where a cost that grows so comes to what a common machine has; the lowest is the
first to break.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

from bench import scale_directory, scale_routing, scale_trees
from bench.report import Report, bench_arguments
from farflung.mesh.config import RendezvousConfig

SIZES, SIZES_QUICK = (100, 1_000, 10_000), (30, 100, 300)
NUM_MEMBERS = 3
CHECKED_NODES = 40
"""So many that all may be whole members."""
GIGABIT_BYTES, HOME_BYTES, MEMORY_BYTES, SEARCH_SECONDS = 125e6, 12.5e6, 8 * 2.0**30, 1.0
LIMITS = {
    "the uplink of a rendezvous node (1 Gbit/s)": ("directory", "rendezvous_bytes_per_second", GIGABIT_BYTES),
    "the downlink of a member (100 Mbit/s)": ("directory", "member_bytes_per_second", HOME_BYTES),
    "a tenth of a member's core, for renewals": ("directory", "core_seconds_per_member_second", 0.1),
    "records that a directory takes": ("directory", "num_nodes", float(RendezvousConfig().num_records_max)),
    "memory of a client that searches a route (8 GiB)": ("routing", "peak_bytes", MEMORY_BYTES),
    "a search for a route within 1 s": ("routing", "core_seconds", SEARCH_SECONDS),
}
"""What would break, by name: the part, the cost and how much of it there is."""


def alone(measure: Callable[..., Any], *arguments: int) -> dict[str, float]:
    """What a measurement tells, in a process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return asdict(pool.submit(measure, *arguments).result())


def growth(costs: Sequence[dict[str, float]], name: str) -> float:
    """The exponent between the two largest sizes; 0 for what stays."""
    first, last = costs[-2], costs[-1]
    if first[name] <= 0 or last[name] <= 0:
        return 0.0
    return math.log(last[name] / first[name]) / math.log(last["num_nodes"] / first["num_nodes"])


def breaks_at(costs: Sequence[dict[str, float]], name: str, limit: float) -> float:
    """How many nodes a cost allows, if it goes on growing as it does."""
    exponent, last = growth(costs, name), costs[-1]
    return last["num_nodes"] * (limit / last[name]) ** (1 / exponent) if exponent > 0 else math.inf


def show(report: Report, title: str, costs: Sequence[dict[str, float]]) -> None:
    """A table with one column per size, and the growth."""
    columns = ("cost", *(f"{cost['num_nodes']:,.0f} nodes" for cost in costs), "growth")
    names = [name for name in costs[0] if name != "num_nodes"]
    rows = [(_words(name), *(float(cost[name]) for cost in costs), f"{growth(costs, name):.2f}") for name in names]
    report.table(title, columns, rows)


def _words(name: str) -> str:
    return name.replace("_", " ")


def check_counting(report: Report) -> None:
    """Whether what is counted for a few members is what a directory costs that has members alone."""
    name = "rendezvous_bytes_per_second"
    few = alone(scale_directory.measure, CHECKED_NODES, NUM_MEMBERS)
    whole = alone(scale_directory.measure, CHECKED_NODES, CHECKED_NODES - len(scale_directory.MEETINGS))
    off = abs(few[name] / whole[name] - 1)
    text = f"{NUM_MEMBERS} members foretell the bytes of {CHECKED_NODES}"
    report.claim(text, "within 5 %", f"{off:.1%}", off <= 0.05)


def main() -> int:
    """Run; the exit status says whether all claims hold."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    sizes = SIZES_QUICK if arguments.quick else SIZES
    report = Report("scale", {"sizes": list(sizes), "members": NUM_MEMBERS})
    check_counting(report)
    found = {
        "directory": [alone(scale_directory.measure, size, NUM_MEMBERS) for size in sizes],
        "routing": [alone(scale_routing.measure, size) for size in sizes],
        "trees": [alone(scale_trees.measure, size) for size in sizes],
    }
    for title, costs in found.items():
        show(report, title, costs)
    limits = {text: breaks_at(found[part], name, limit) for text, (part, name, limit) in LIMITS.items()}
    order = sorted(limits, key=lambda text: limits[text])
    report.table("What breaks", ("limit", "at nodes"), [(text, f"{limits[text]:,.0f}") for text in order])
    claim_all(report, found, f"{order[0]}, at {limits[order[0]]:,.0f} nodes", limits[order[0]])
    return report.finish(arguments)


def claim_all(report: Report, found: dict[str, list[dict[str, float]]], first: str, num_nodes: float) -> None:
    """What should hold of growth."""
    for part, name in (("trees", "worker_messages_per_update"), ("trees", "server_messages_per_update")):
        exponent = growth(found[part], name)
        report.claim(f"{_words(name)}: growth", "at most 0.1", f"{exponent:.2f}", exponent <= 0.1)
    exponent = growth(found["trees"], "server_held_bytes_per_worker")
    report.claim("what a local server holds per worker: growth", "at most 0.1", f"{exponent:.2f}", exponent <= 0.1)
    for name in ("member_bytes_per_second", "member_held_bytes"):
        exponent = growth(found["directory"], name)
        report.claim(f"{_words(name)}: growth", "at most 1.1", f"{exponent:.2f}", exponent <= 1.1)
    report.claim("1,000 nodes within every limit; the first to break", "above 1,000", first, num_nodes > 1_000)


if __name__ == "__main__":
    sys.exit(main())
