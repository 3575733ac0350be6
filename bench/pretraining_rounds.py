"""Runs of `systems/desync` on the official cluster in the simulator, and how its links are scaled for small models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from bench.halos_cluster import SITES, STEP_SECONDS, machines, site_bandwidths, topology
from farflung.apps.plan.rounds_run import LEADER, RoundsRun
from farflung.apps.plan.stand_in import StandIn, WorkerPlace
from farflung.learn.parameters import Tensors
from farflung.sim.station import MessageEvent
from farflung.sim.topology import Topology
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.learner import Learner

ENCODER = msgspec.msgpack.Encoder()
CALIBRATION_STEPS = 640
"""Of a method whose rounds have 512 local steps and fewer;"""
CALIBRATION_STEPS_FREE = 160
"""of one that begins rounds by time, which has many of them in so many."""
LARGE_VALUES = 200_000
"""Of a model whose messages are large beside their headers."""


def rounds_run(
    config: DesyncConfig,
    links: Topology,
    make_learner: Callable[[int], Learner],
    measure: Callable[[Tensors], float],
    *,
    workers: Sequence[WorkerPlace] | None = None,
    late: Sequence[WorkerPlace] = (),
    late_seconds: float = 0.0,
    num_points: int = 40,
) -> RoundsRun:
    """On the official cluster, or with other `workers` at its pace."""
    return RoundsRun(
        config,
        links,
        make_learner,
        measure,
        workers=machines() if workers is None else workers,
        leader_site=SITES[0],
        step_seconds=STEP_SECONDS,
        late=late,
        late_seconds=late_seconds,
        num_points=num_points,
    )


def wire_bytes(config: DesyncConfig, num_values: int) -> int:
    """By how many bytes of a model of `num_values` the links are to be scaled, so that rounds take their true time.

    Headers are nothing beside the messages of a large model, but a tenth of those of a small one: what this method
    really sends between regions per round is measured at both sizes.
    """
    sizes = (num_values, LARGE_VALUES)
    num_steps = CALIBRATION_STEPS_FREE if config.is_free_running else CALIBRATION_STEPS
    sent = [_round_bytes(replace(config, num_worker_steps=num_steps), size) for size in sizes]
    return round(4 * LARGE_VALUES * sent[0] / sent[1])


def _round_bytes(config: DesyncConfig, num_values: int) -> float:
    config = replace(config, bytes_per_second=site_bandwidths(4 * num_values))
    run = rounds_run(config, topology(4 * num_values), lambda _: StandIn(num_values), lambda _: 0.0, num_points=1)
    sites = {machine.name: machine.site for machine in machines()} | {LEADER: SITES[0]}
    num_bytes = 0

    def count(event: MessageEvent) -> None:
        nonlocal num_bytes
        if event.phase == "sent" and sites[event.source] != sites[event.target]:
            num_bytes += len(ENCODER.encode(event.message))

    run.simulation.watch(count)
    num_rounds = max(report.round for report in run.run().reports)
    return num_bytes / num_rounds
