"""A measurer's seat: the model, what it measures on, and how far it has come."""

import asyncio
import copy
import hashlib
from collections import deque
from collections.abc import Callable
from typing import Any

from farflung.apps.finetune.accuracy import Score
from farflung.apps.finetune.charter import kept_identity, read_charter
from farflung.apps.finetune.engine import group_of
from farflung.apps.finetune.learners import BOTH_SIDES, WatchedLearner, learner_of
from farflung.apps.finetune.materials import TuningMaterials
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.part import Sitting, sent_bytes, taken
from farflung.systems.onebyte import messages
from farflung.systems.onebyte.header import decode_header
from farflung.systems.onebyte.worker import Worker
from farflung.wire.identity import Identity
from farflung.wire.message import kinds_of
from farflung.world.doors import Failed, TrafficMeter, World
from farflung.world.nursery import open_nursery

KEY_FILE = "measurer.key"
KINDS = kinds_of(messages)
SENT, RECEIVED = "own bytes sent", "own bytes received"
"""Names of a report's values."""


class WorkerPart:
    """See `runs.part.Part`."""

    def __init__(self, sitting: Sitting[FinetuneRun], materials: TuningMaterials) -> None:
        self._sitting = sitting
        self._ended = asyncio.Event()
        self._decisions: deque[str] = deque()
        self._told_score: Score | None = None
        run, header = sitting.run, decode_header(read_charter(sitting.charter).header)
        model = copy.deepcopy(materials.model) if sitting.folder is None else materials.model
        model = materials.on_device(model)
        learner = learner_of(sitting, header, materials, model)
        self._learner = WatchedLearner(learner, model, materials, is_scoring=sitting.seat.number == 0)
        tokens, width = materials.task.train.tokens, BOTH_SIDES * run.training.batch_size
        self._tokens_per_slot = width * sum(map(len, tokens)) // len(tokens)
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
            told = await self._worker.run()
            if told.reason:
                self._decisions.append(told.reason)
                if self._sitting.folder is not None:  # a machine of its own, perhaps
                    print(f"{told.reason}; it has followed the run to its end", flush=True)
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
        values = {"round": float(told.num_rounds), **own_bytes(self._sitting.world.traffic)}
        if newest is not None and newest.accuracy is not None:
            values["accuracy"] = newest.accuracy
        if told.epsilon is not None:
            values |= {"epsilon": told.epsilon, "is_spent": float(bool(told.reason))}
        is_new, self._told_score = newest is not self._told_score, newest
        return SeatReport(
            seat=self._sitting.seat.index,
            num_steps=told.num_measured,
            num_tokens=told.num_measured * self._tokens_per_slot,
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


def own_bytes(traffic: TrafficMeter) -> dict[str, float]:
    """Of single bytes and what goes with them, without what nodes send to keep in touch."""
    found = {SENT: 0.0, RECEIVED: 0.0}
    for (_, kind, was_sent), num_bytes in traffic.num_bytes.items():
        if kind in KINDS:
            found[SENT if was_sent else RECEIVED] += num_bytes
    return found


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
