"""Runs of `systems/hierarchy` on the official cluster in the simulator."""

from __future__ import annotations

from collections.abc import Callable

from bench.halos_cluster import SITES, STEP_SECONDS, machines, topology, uncontended_topology
from farflung.apps.plan.tree_run import TreeRun, server_name
from farflung.learn.learner import Learner
from farflung.learn.parameters import Tensors, num_bytes
from farflung.systems.hierarchy.config import HierarchyConfig


def tree_run(
    config: HierarchyConfig,
    make_learner: Callable[[int], Learner],
    measure: Callable[[Tensors], float],
    *,
    has_global: bool = True,
    bandwidth: float = 1.0,
    num_points: int = 40,
) -> TreeRun:
    """With links scaled by the bytes of what is learned."""
    model_bytes = num_bytes(make_learner(0).parameters)
    nodes = {place.name: place.site for place in machines()} | {server_name(SITES[0]): SITES[0]}
    links = topology(model_bytes, bandwidth) if has_global else uncontended_topology(model_bytes, nodes, bandwidth)
    return TreeRun(
        config,
        links,
        make_learner,
        measure,
        workers=machines(),
        step_seconds=STEP_SECONDS,
        has_global=has_global,
        num_points=num_points,
    )
