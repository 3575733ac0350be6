"""A measurer's seat: the model, what it measures on, and how far it has come."""

import asyncio
import copy
import hashlib
from collections import deque
from collections.abc import Callable
from typing import Any

from farflung.apps.finetune.accuracy import Score, score
from farflung.apps.finetune.charter import kept_identity, read_charter
from farflung.apps.finetune.engine import group_of
from farflung.apps.finetune.materials import TuningMaterials, batches_of
from farflung.apps.finetune.rows import Rows
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.part import Sitting, sent_bytes, taken
from farflung.systems.onebyte.header import Header, decode_header
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.objective import Batch
from farflung.systems.onebyte.worker import Worker
from farflung.wire.identity import Identity
from farflung.world.doors import Failed, World
from farflung.world.nursery import open_nursery

KEY_FILE = "measurer.key"
BOTH_SIDES = 2


class WatchedLearner(ModelLearner):
    """A learner that counts what it does and, on one of the seats, scores the model now and then."""

    def __init__(self, header: Header, model: Any, materials: TuningMaterials, seat_number: int) -> None:
        """`seat_number`: of the worker; the first one scores."""
        run = materials.run
        device = model.device
        batches = batches_of(run, materials.task)

        def on_device(round_number: int) -> Batch:
            return {name: tensor.to(device) for name, tensor in batches(round_number).items()}

        super().__init__(
            header,
            model,
            materials.task.objective,
            on_device,
            num_directions=run.onebyte.directions_per_pass,
            is_exact=run.onebyte.is_exact,
        )
        self._model = model
        self._objective = materials.task.objective
        self._batch_of = on_device
        self._held_out: Rows | None = materials.held_out.first(run.training.evaluation_examples)
        if seat_number:
            self._held_out = None
        self._every = run.training.evaluation_rounds
        self._scored_round: int | None = None
        self.num_forwards = 0
        self.num_backwards = 0
        """Passes over a batch."""
        self.num_tokens = 0
        """That went forward."""
        self.score: Score | None = None
        """The newest."""

    def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
        """As a learner does."""
        if self._held_out is not None and self._is_due(round_number):
            self._scored_round = round_number
            self.refresh()
            self.score = score(self._model, self._objective, self._held_out)
        codes = super().measure(round_number, first_slot, num_slots)
        num_passes = 1 if self._is_exact else BOTH_SIDES * num_slots
        self.num_forwards += num_passes
        self.num_backwards += int(self._is_exact)
        self.num_tokens += num_passes * self._batch_of(round_number)["input_ids"].numel()
        return codes

    def _is_due(self, round_number: int) -> bool:
        return self._scored_round is None or round_number - self._scored_round >= self._every


class WorkerPart:
    """See `runs.part.Part`."""

    def __init__(self, sitting: Sitting[FinetuneRun], materials: TuningMaterials) -> None:
        self._sitting = sitting
        self._ended = asyncio.Event()
        self._decisions: deque[str] = deque()
        self._told_score: Score | None = None
        run, header = sitting.run, decode_header(read_charter(sitting.charter).header)
        model = copy.deepcopy(materials.model) if sitting.folder is None else materials.model
        self._learner = WatchedLearner(header, materials.on_device(model), materials, sitting.seat.number)
        self._worker = Worker(
            sitting.world,
            header,
            run.onebyte.rounds_config(run.training.rounds),
            group_of(sitting),
            self._identity(),
            self._learner,
            name=sitting.seat.name,
            seconds_per_slot=run.simulation.slot_seconds,
        )

    def _identity(self) -> Identity:
        """Signs what is measured here, in all lives of the seat."""
        folder, seat = self._sitting.folder, self._sitting.seat
        if folder is not None:
            return kept_identity(folder / KEY_FILE)
        return Identity(hashlib.sha256(f"{self._sitting.run.run.seed}:{seat.name}".encode()).digest())

    async def run(self) -> None:
        async def work() -> None:
            await self._worker.run()
            digest = await computed(self._sitting.world, self._learner.digest)
            self._decisions.append(f"its weights have the state {digest.hex()}")
            self._ended.set()

        async with open_nursery() as nursery:
            working = nursery.start(work(), name="worker")
            await self._ended.wait()
            working.cancel()

    def stop(self) -> None:
        self._ended.set()  # the journal has all that counts

    def report(self) -> SeatReport:
        told, newest = self._worker.report(), self._learner.score
        values = {"round": float(told.num_rounds)}
        if newest is not None and newest.accuracy is not None:
            values["accuracy"] = newest.accuracy
        is_new, self._told_score = newest is not self._told_score, newest
        return SeatReport(
            seat=self._sitting.seat.index,
            num_steps=told.num_measured,
            num_tokens=self._learner.num_tokens,
            loss=newest.loss if newest is not None and is_new else None,
            values=values,
            sent=sent_bytes(self._sitting.world),
            counters={
                "measured": told.num_measured,
                "counted": told.num_counted,
                "forward_passes": self._learner.num_forwards,
                "backward_passes": self._learner.num_backwards,
            },
            decisions=taken(self._decisions),
        )

    def result(self) -> bytes | None:
        return None

    def close(self) -> None:
        self._ended.set()


def worker_part(sitting: Sitting[FinetuneRun], materials: TuningMaterials | None) -> WorkerPart:
    """The part of a worker's seat."""
    assert materials is not None
    return WorkerPart(sitting, materials)


async def computed(world: World, function: Callable[[], Any]) -> Any:
    """What `function` gives, which runs on the device behind whatever runs there."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(result: object) -> None:
        if not future.done():
            future.set_result(result)

    world.compute.submit(done, function, seconds=0.0)
    result = await future
    if isinstance(result, Failed):
        raise result.error
    return result
