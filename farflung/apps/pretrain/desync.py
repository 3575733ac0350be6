"""The synchronous methods as seats: one coordinator, and workers that average among themselves."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from farflung.apps.pretrain.learner import Learner, RevealingCompute, worker_report
from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.replicas import KeptRounds, ReplicaFolder, roll_back
from farflung.apps.pretrain.run_file import RunFile
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.part import Part, Sitting, Stopped, sent_bytes, taken
from farflung.apps.runs.seats import Seat, worker_seats
from farflung.learn.parameters import Tensors
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.messages import COORDINATOR
from farflung.systems.desync.round import Coordinator
from farflung.systems.desync.worker import Worker, WorkerReport
from farflung.world.address import Address
from farflung.world.doors import Failed
from farflung.world.host import Host
from farflung.world.nursery import open_nursery


def config_of(run: RunFile) -> DesyncConfig:
    """The engine's settings for a run."""
    bandwidths: dict[tuple[str, str], float] = {}
    for link in run.links:
        one, other = link.between
        bandwidths[one, other] = bandwidths[other, one] = link.bytes_per_second
    num_members = sum(not is_remote for region in run.regions for is_remote in region.are_remote)
    return run.algorithm.desync_config(run.num_steps, run.training.optimizer, bandwidths, num_members)


class DesyncEngine:
    """See `runs.engine.Engine`."""

    def seats(self, run: RunFile) -> list[Seat]:
        first = run.regions[0].name
        return [Seat(index=0, kind="coordinator", region=first), *worker_seats(run.regions, 1)]

    def needs(self, seat: Seat, seats: tuple[Seat, ...]) -> list[int]:
        if seat.kind != "worker":
            return []
        # All that start here begin together: a round with few members would be worth little.
        return [other.index for other in seats if not other.is_remote and other != seat]

    def part(self, sitting: Sitting[RunFile], materials: Materials) -> Part:
        if sitting.seat.kind == "coordinator":
            return CoordinatorPart(sitting)
        learner, num_shards = Learner(materials.trainer(sitting.seat)), materials.stream_of(sitting.seat).num_shards
        return WorkerPart(sitting, learner, num_shards)

    def result_seats(self, seats: tuple[Seat, ...]) -> list[Seat]:
        return [seat for seat in seats if seat.kind == "worker" and not seat.is_remote]

    def prepare_resume(self, homes: dict[int, Path], seats: tuple[Seat, ...]) -> bool:
        rounds = [ReplicaFolder(homes[seat.index]).newest_round for seat in self.result_seats(seats)]
        coordinator = next(seat for seat in seats if seat.kind == "coordinator")
        newest = max(rounds, default=0)
        roll_back(homes[coordinator.index], newest)
        return newest > 0


LAST_ROUND_SECONDS_MAX = 30.0
"""A worker that is stopped and whose last round does not come to an end by then saves the one before."""


class CoordinatorPart:
    """Forms the rounds."""

    def __init__(self, sitting: Sitting[RunFile]) -> None:
        self._sitting = sitting
        self._stopped = Stopped()
        self.coordinator = Coordinator(config_of(sitting.run), KeptRounds(sitting.world.store))
        self._host = Host(self.coordinator, sitting.world, COORDINATOR, self._stopped.fail)

    async def run(self) -> None:
        await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()

    def report(self) -> SeatReport:
        return SeatReport(
            seat=self._sitting.seat.index,
            sent=sent_bytes(self._sitting.world),
            decisions=taken(self.coordinator.decisions),
        )

    def result(self) -> Tensors:
        raise AssertionError("a coordinator has no model")

    def close(self) -> None:
        self._host.stop()


@dataclass(frozen=True, slots=True)
class SeatData:
    """The data of a worker, for the coordinator to deal."""

    learner: Learner
    num_shards: int

    @property
    def cursor(self) -> dict[str, int]:
        """How far they are read."""
        return self.learner.cursor

    def seek(self, cursor: Mapping[str, int]) -> None:
        """Read from there."""
        self.learner.seek(cursor)


class WorkerPart:
    """Local steps and rounds."""

    def __init__(self, sitting: Sitting[RunFile], learner: Learner, num_shards: int) -> None:
        self._sitting = sitting
        self._learner = learner
        self._folder = None if sitting.folder is None else ReplicaFolder(sitting.folder)
        self._is_stopping = False
        self._ended = Stopped()
        self._saved_at = sitting.world.clock.now()
        coordinator = next(seat for seat in sitting.seats if seat.kind == "coordinator")
        self._worker = Worker(
            replace(sitting.world, compute=RevealingCompute(sitting.world.compute, learner)),
            learner,
            config_of(sitting.run),
            Address(sitting.peers[coordinator.index], COORDINATOR),
            site=sitting.seat.region,
            step_seconds=sitting.run.simulation.step_seconds,
            data=SeatData(learner, num_shards),
            on_round=self._on_round,
        )
        if self._folder is not None:
            self._folder.load(self._worker.replica)

    async def run(self) -> None:
        async def work() -> None:
            report = await self._worker.run()
            if self._is_stopping and not report.has_result:
                self._save_and_leave()
            else:
                self._ended.set()

        async with open_nursery() as nursery:
            working = nursery.start(work(), name="worker")
            await self._ended.wait()
            working.cancel()

    def stop(self) -> None:
        self._is_stopping = True
        if self._worker.report.num_steps == 0:
            self._ended.set()  # there is nothing yet that could be kept
            return
        self._worker.stop()
        asyncio.get_running_loop().call_later(LAST_ROUND_SECONDS_MAX, self._save_and_leave)

    def _on_round(self, report: WorkerReport) -> None:
        if self._sitting.world.clock.now() - self._saved_at >= self._sitting.run.training.checkpoint_seconds:
            self._save(self._on_saved)

    def _save_and_leave(self) -> None:
        def leave(result: object) -> None:
            self._on_saved(result)
            self._ended.set()

        self._save(leave)

    def _save(self, done: Callable[[object], None]) -> None:
        """The replica as of the end of its last round, between two computations."""
        if self._folder is None:
            done(None)
            return
        self._saved_at = self._sitting.world.clock.now()
        self._sitting.world.compute.submit(done, self._folder.save, self._worker.replica, seconds=0.0)

    def _on_saved(self, result: object) -> None:
        if isinstance(result, Failed):
            self._sitting.world.note("checkpoint", str(result.error))
            if isinstance(result.error, OSError):
                self._ended.fail(result.error)

    def report(self) -> SeatReport:
        return worker_report(self._sitting, self._learner, self._worker.report.seconds_waiting)

    def result(self) -> Tensors | None:
        return self._learner.parameters if self._worker.report.has_result else None

    def close(self) -> None:
        self._ended.set()
