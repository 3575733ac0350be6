"""The official four-region cluster: its bandwidths, speeds and model, as nodes and links for the simulator.

Times are those of the published configuration. A smaller model stands in for the 70M-parameter one by links that are as
much narrower as its bytes are fewer: an exchange then takes as long as it would with the large model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from farflung.apps.plan.stand_in import WorkerPlace
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Link, Topology

GIGABITS_PER_SECOND = (
    (100.0, 0.537, 0.935, 0.202),
    (0.537, 100.0, 0.386, 0.117),
    (0.935, 0.386, 100.0, 0.127),
    (0.202, 0.117, 0.127, 100.0),
)
SPEEDS = (
    (0.232, 0.907, 0.828, 0.347),
    (0.574, 0.531, 0.722, 0.194),
    (0.852, 0.132, 0.896, 0.107),
    (0.827, 0.515, 0.527, 0.788),
)
SPEED_MAX = max(map(max, SPEEDS))
STEP_SECONDS = 0.238391
"""One local step of the fastest worker."""
MODEL_BYTES = 4 * 70_426_624
"""Pythia-70M in 32-bit floats."""
BUDGET_STEPS = 98_304
SITES = ("region-0", "region-1", "region-2", "region-3")
STEPS_PER_SECOND_MAX = sum(map(sum, SPEEDS)) / SPEED_MAX / STEP_SECONDS
"""The compute ceiling: every worker at work all the time."""


def machines() -> list[WorkerPlace]:
    """The sixteen workers, by region."""
    return [
        WorkerPlace(f"worker-{site}-{number}", SITES[site], SPEEDS[site][number] / SPEED_MAX)
        for site, number in product(range(4), range(4))
    ]


def bytes_per_second(one: int, other: int, model_bytes: int, bandwidth: float = 1.0) -> float:
    """Of the link between two regions for a model of `model_bytes` in place of the published one."""
    return GIGABITS_PER_SECOND[one][other] * 1e9 / 8 * bandwidth * model_bytes / MODEL_BYTES


def site_bandwidths(model_bytes: int, bandwidth: float = 1.0) -> dict[tuple[str, str], float]:
    """Bytes per second from region to region."""
    return {
        (SITES[one], SITES[other]): bytes_per_second(one, other, model_bytes, bandwidth)
        for one, other in product(range(4), range(4))
        if one != other
    }


def topology(model_bytes: int, bandwidth: float = 1.0) -> Topology:
    """Links without latency; all that crosses between two regions in one direction shares one link.

    Args:
        bandwidth: of the published one between regions; within regions it stays.
    """
    within = Link(bytes_per_second=bytes_per_second(0, 0, model_bytes))
    result = Topology(within=within)
    for one, other in product(range(4), range(4)):
        if one < other:
            link = Link(bytes_per_second=bytes_per_second(one, other, model_bytes, bandwidth))
            result.link(SITES[one], SITES[other], link)
    return result


def uncontended_topology(model_bytes: int, nodes: dict[str, str], bandwidth: float = 1.0) -> Topology:
    """As published: every pair of `nodes` (their region by name) has a link of its own."""
    result = topology(model_bytes, bandwidth)
    for one, other in product(nodes, nodes):
        if one < other and nodes[one] != nodes[other]:
            ends = SITES.index(nodes[one]), SITES.index(nodes[other])
            result.link(one, other, Link(bytes_per_second=bytes_per_second(*ends, model_bytes, bandwidth)))
    return result


def add_workers(simulation: Simulation, workers: Sequence[WorkerPlace]) -> None:
    """The workers as nodes; a local step is charged with `STEP_SECONDS`."""
    for worker in workers:
        simulation.node(worker.name, site=worker.site, slowness=1 / worker.speed)


def steps_of_round(num_steps: int) -> list[int]:
    """H_w of every worker while the fastest makes `num_steps`."""
    return [max(1, math.ceil(num_steps * worker.speed - 1e-9)) for worker in machines()]
