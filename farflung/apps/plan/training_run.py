"""A stretch of pretraining in virtual time: the engines that ship, a stand-in for the model, and narrower links."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from farflung.apps.plan.places import Bytes, Nodes, difference, scaled, topology_of
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.rounds_run import LEADER, RoundsRun
from farflung.apps.plan.stand_in import StandIn, WorkerPlace
from farflung.apps.plan.tree_run import GLOBAL, TreeRun, server_name
from farflung.learn.parameters import Tensors
from farflung.sim.simulation import Simulation
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.hierarchy.config import HierarchyConfig

STAND_IN_VALUES = 65_536
HEADER_BYTES = 100
"""Of a message, beside its values: the stand-in's small messages carry it for each large one of the model."""
UPDATES_PER_WORKER = 16
"""Of a tree: some pushes of every local server."""
BEGINNING_SHARE = 0.2
"""Of a tree's steps, which are not measured: everybody begins at once then."""
NEVER_SECONDS = 1e7
"""Nobody dies in a plan: that something takes long over a thin link is no reason to ask again or to begin anew."""
BUDGET_STEPS = 10**9
"""More than any stretch has."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was measured, at the model's true size."""

    steps_per_second: float
    """Local steps of all workers together."""
    bytes_per_step: Bytes
    busy_share: float
    """Of the workers' time, computing; the mean over workers."""
    round_seconds: float
    """Of rounds: from one to the next."""


@dataclass(frozen=True, slots=True)
class _Mark:
    seconds: float
    sent: Bytes
    num_messages: Bytes
    busy_seconds: tuple[float, ...]
    """Of each worker."""


def rounds_stretch(
    plan: PlanFile, config: DesyncConfig, workers: Sequence[WorkerPlace], step_seconds: float, num_parameters: int
) -> Stretch:
    """Of rounds: the first one, and then until every state was averaged."""
    scale = STAND_IN_VALUES / num_parameters
    patient = {"exchange_seconds_max": NEVER_SECONDS, "deadline_seconds": NEVER_SECONDS, "ask_again_seconds": 1e6}
    short = replace(
        config,
        num_worker_steps=BUDGET_STEPS,
        bytes_per_second={way: rate * scale for way, rate in config.bytes_per_second.items()},
        rounds=replace(config.rounds, num_members_at_start=len(workers), **patient),
    )
    watch = _Watch(workers)
    watch.nodes.sites[LEADER] = workers[0].site
    run = RoundsRun(
        short,
        topology_of(plan, scale),
        lambda _: StandIn(STAND_IN_VALUES),
        watch,
        workers=workers,
        leader_site=workers[0].site,
        step_seconds=step_seconds,
        num_points=BUDGET_STEPS,
        num_points_max=2 + num_rounds_of_cycle(config),
    )
    watch.simulation = run.simulation
    curve = run.run().curve
    num_steps = [point.num_steps for point in curve.points]
    found = watch.stretch(num_steps, 1, 1 / scale, is_link_paced=config.is_free_running)
    if not config.is_free_running:
        return found
    # Steps go on between rounds, and there may be many rounds to a step: those credited by then are too few to count.
    busy_share = watch.busy_share_from_start()
    rate = busy_share * sum(place.speed for place in workers) / step_seconds
    per_step = scaled(found.bytes_per_step, found.steps_per_second / rate)
    return replace(found, steps_per_second=rate, bytes_per_step=per_step, busy_share=busy_share)


def num_rounds_of_cycle(config: DesyncConfig) -> int:
    """Until every state has been averaged."""
    if config.is_free_running:
        return 1  # fragments are equally large
    longest = max([config.parameters_every, *config.moments_every.values()])
    return -(-longest // config.parameters_every)


def tree_stretch(
    plan: PlanFile,
    config: HierarchyConfig,
    workers: Sequence[WorkerPlace],
    step_seconds: float,
    num_parameters: int,
    *,
    has_global: bool,
) -> Stretch:
    """Of a tree: some pushes of every server."""
    scale = STAND_IN_VALUES / num_parameters
    patient = {"alive_seconds": 1e6, "lease_seconds": NEVER_SECONDS}
    asking = {"ask_again_seconds": 1e6, "ask_again_seconds_max": 1e6}
    short = replace(config, budget_steps=tree_steps(config, workers), num_shards=0, **patient, **asking)
    watch = _Watch(workers)
    sites = list(dict.fromkeys(place.site for place in workers))
    watch.nodes.sites |= {server_name(site): site for site in (sites if has_global else sites[:1])}
    if has_global:
        watch.nodes.sites[GLOBAL] = sites[0]
    run = TreeRun(
        short,
        topology_of(plan, scale),
        lambda _: StandIn(STAND_IN_VALUES),
        watch,
        workers=workers,
        step_seconds=step_seconds,
        has_global=has_global,
        num_points=50,
        look_seconds=step_seconds,
    )
    watch.simulation = run.simulation
    points = run.run().points
    num_begin = next(at for at, one in enumerate(points) if one.num_steps >= BEGINNING_SHARE * points[-1].num_steps)
    return watch.stretch([point.num_steps for point in points], min(num_begin, len(points) - 2), 1 / scale)


def tree_steps(config: HierarchyConfig, workers: Sequence[WorkerPlace]) -> int:
    """Until workers have sent some updates each."""
    speeds = [place.speed if config.is_speed_scaled else 1.0 for place in workers]
    return UPDATES_PER_WORKER * sum(max(1, math.ceil(config.num_local_steps * speed)) for speed in speeds)


class _Watch:
    """Asked for the loss at every point of a run, it looks at the counters instead."""

    def __init__(self, workers: Sequence[WorkerPlace]) -> None:
        self.nodes = Nodes({place.name: place.site for place in workers})
        self.simulation: Simulation | None = None
        self._workers = [place.name for place in workers]
        self._marks: list[_Mark] = []

    def __call__(self, parameters: Tensors) -> float:
        simulation = self.simulation
        if simulation is None or simulation.now() == 0:
            self._marks.append(_Mark(0.0, {}, {}, ()))
            return 0.0
        devices: list[Any] = [simulation.world(name).compute for name in self._workers]
        self._marks.append(
            _Mark(
                simulation.now(),
                self.nodes.bytes_sent(simulation),
                self.nodes.messages_sent(simulation),
                tuple(device.busy_seconds for device in devices),
            )
        )
        return 0.0

    def busy_share_from_start(self) -> float:
        """Of the workers' time; what a computation takes counts when it begins."""
        last = self._marks[-1]
        return sum(min(1.0, busy / last.seconds) for busy in last.busy_seconds) / len(self._workers)

    def stretch(self, num_steps: Sequence[int], number: int, scale: float, *, is_link_paced: bool = False) -> Stretch:
        """From the point of that number to the last; `scale`: of the model over the stand-in. Where links set the pace,
        they are as full with the model as with the stand-in and its headers."""
        begin, last = self._marks[number], self._marks[len(num_steps) - 1]
        steps, seconds = num_steps[-1] - num_steps[number], last.seconds - begin.seconds
        header_bytes = 0 if is_link_paced else HEADER_BYTES
        headers = scaled(difference(last.num_messages, begin.num_messages), header_bytes)
        payload = difference(difference(last.sent, begin.sent), headers)
        busy_seconds = sum(last.busy_seconds) - sum(begin.busy_seconds)
        return Stretch(
            steps_per_second=steps / seconds,
            bytes_per_step={way: max(0.0, num_bytes) * scale / steps for way, num_bytes in payload.items()},
            busy_share=min(1.0, busy_seconds / seconds / len(self._workers)),
            round_seconds=seconds / (len(num_steps) - 1 - number),
        )
