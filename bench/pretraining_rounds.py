"""Whole runs of `systems/desync` on the official cluster in the simulator, with what they cost and came to."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import torch

from bench.halos_cluster import SITES, STEP_SECONDS, Machine, machines, site_bandwidths, topology
from bench.small_model import Curve, Point
from farflung.learn.parameters import Tensors
from farflung.sim.simulation import Simulation
from farflung.sim.station import MessageEvent
from farflung.sim.topology import Topology
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.learner import Learner
from farflung.systems.desync.messages import COORDINATOR
from farflung.systems.desync.round import Coordinator
from farflung.systems.desync.worker import Worker, WorkerReport
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.host import Host

LEADER = "coordinator"
ENCODER = msgspec.msgpack.Encoder()
CALIBRATION_STEPS = 640
"""Of a method whose rounds have 512 local steps and fewer;"""
CALIBRATION_STEPS_FREE = 160
"""of one that begins rounds by time, which has many of them in so many."""
LARGE_VALUES = 200_000
"""Of a model whose messages are large beside their headers."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run."""

    curve: Curve
    seconds: float
    num_steps: int
    """Credited, over all workers."""
    num_bytes: int
    """Sent by all workers."""
    reports: list[WorkerReport]


@dataclass(frozen=True, slots=True)
class Walked:
    """What some steps of a toy came to."""

    num_steps: int
    num_tokens: int = 0
    loss: float = 0.0


class Toy:
    """A model of zeros that walks a little with every step, with Adam's moments: for counting bytes and seconds."""

    def __init__(self, num_values: int) -> None:
        self.parameters: Tensors = {"values": torch.zeros(num_values)}
        self.moments: dict[str, Tensors] = {
            name: {"values": torch.zeros(num_values)} for name in ("first_moment", "second_moment")
        }
        self.num_steps = 0

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Walked:
        """Make local steps."""
        self.parameters["values"].add_(1e-3 * num_steps)
        self.num_steps += num_steps
        return Walked(num_steps)


class DesyncRun:
    """One run: `measure` is asked for the loss of what all have agreed on, about `num_points` times."""

    def __init__(
        self,
        config: DesyncConfig,
        topology: Topology,
        make_learner: Callable[[int], Learner],
        measure: Callable[[Tensors], float],
        *,
        workers: list[Machine] | None = None,
        late: list[Machine] | None = None,
        late_seconds: float = 0.0,
        num_points: int = 40,
    ) -> None:
        """`late` join after `late_seconds`."""
        self._config = config
        self._make_learner = make_learner
        self._measure = measure
        self._workers = machines() if workers is None else workers
        self._late = late or []
        self._late_seconds = late_seconds
        self._interval_steps = max(1, config.num_worker_steps // num_points)
        self._points: list[Point] = []
        self._round = 0
        self._reports: dict[str, WorkerReport] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._running: dict[str, Worker] = {}
        self.simulation = Simulation(topology=topology, keep_trace=False)
        self.simulation.node(LEADER, site=SITES[0], boot=self._lead)

    def run(self) -> Outcome:
        """From the beginning to the end."""
        with self.simulation as simulation:
            for index, machine in enumerate(self._workers):
                self._add(index, machine)
            for index, machine in enumerate(self._late, len(self._workers)):
                simulation.at(self._late_seconds, functools.partial(self._add, index, machine))
            simulation.run(self._all_ended(), deadline=float("inf"))
            num_bytes = sum(simulation.traffic(name).total(sent=True) for name in self._running)
        final = self._points[-1]
        return Outcome(Curve(self._points), final.seconds, final.num_steps, num_bytes, list(self._reports.values()))

    def _lead(self, world: World) -> None:
        self._coordinator = Coordinator(self._config, world.store)
        Host(self._coordinator, world, COORDINATOR)

    def _add(self, index: int, machine: Machine) -> None:
        def boot(world: World) -> None:
            learner = self._make_learner(index)
            worker = self._running[machine.name] = Worker(
                world,
                learner,
                self._config,
                Address(PeerId(LEADER), COORDINATOR),
                site=machine.site,
                step_seconds=STEP_SECONDS,
                steps_per_second=machine.speed / STEP_SECONDS,
                on_round=lambda report: self._on_round(machine.name, report),
            )
            if not self._points:
                self._points.append(Point(0.0, 0, self._measure(worker.replica.agreed_parameters)))

            async def work() -> None:
                self._reports[machine.name] = await worker.run()

            self._tasks.append(asyncio.get_running_loop().create_task(work()))

        self.simulation.node(machine.name, site=machine.site, boot=boot, slowness=1 / machine.speed)

    def _on_round(self, name: str, report: WorkerReport) -> None:
        if report.round <= self._round:
            return
        self._round = report.round
        num_steps = self._coordinator.num_credited
        if num_steps >= self._points[-1].num_steps + self._interval_steps or self._coordinator.is_over:
            replica = self._running[name].replica
            # Gradients are what is agreed on where they are averaged; the parameters are equal at all workers then.
            is_sgd = self._config.averages_gradients
            loss = self._measure(replica.learner.parameters if is_sgd else replica.agreed_parameters)
            self._points.append(Point(self.simulation.now(), num_steps, loss))

    async def _all_ended(self) -> None:
        while len(self._reports) < len(self._running):
            for task in self._tasks:
                if task.done() and not task.cancelled():
                    task.result()
            await asyncio.sleep(1.0)


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
    run = DesyncRun(config, topology(4 * num_values), lambda _: Toy(num_values), lambda _: 0.0, num_points=1)
    sites = {machine.name: machine.site for machine in machines()} | {LEADER: SITES[0]}
    num_bytes = 0

    def count(event: MessageEvent) -> None:
        nonlocal num_bytes
        if event.phase == "sent" and sites[event.source] != sites[event.target]:
            num_bytes += len(ENCODER.encode(event.message))

    run.simulation.watch(count)
    num_rounds = max(report.round for report in run.run().reports)
    return num_bytes / num_rounds
