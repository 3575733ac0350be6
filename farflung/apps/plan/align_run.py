"""A stretch of alignment in virtual time: trainer, hub, rollout workers and the weight plane that ship.

Weights are random ones in the model's tensors; of a large model they are a sample, of which as large a share changes,
that counts on links as the whole. Answers and all else have their true size. Sampling, steps and versions take their
machines' time.
"""

import asyncio
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from farflung.apps.plan.align_stand_in import Prompts, Sampling, Training, Words
from farflung.apps.plan.places import Bytes, Nodes, difference, scaled, topology_of
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.stand_in import WorkerPlace
from farflung.sim.simulation import Simulation
from farflung.systems.alignment.charges import Charges
from farflung.systems.alignment.config import AlignmentConfig, WeightsConfig
from farflung.systems.alignment.messages import AlignChunk, AlignChunkAsk, AlignHolds, AlignPath, AlignPathAsk
from farflung.systems.alignment.trainer import NoBatch, StepReport, Trainer
from farflung.systems.alignment.worker import Worker
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.errors import FarflungError

TRAINER = PeerId("trainer")
RUN = b"planned"
VALUES_MAX = 1 << 20
"""Of the sample."""
CHUNKS_MAX = 32
"""Of the sample's, in place of the model's many more."""
HEADER_BYTES = 150
"""Of a chunk, beside its values."""
VERSION_KINDS = frozenset(one.__name__ for one in (AlignPathAsk, AlignPath, AlignChunkAsk, AlignChunk, AlignHolds))
STEPS_BEFORE = 3
"""Until it goes on as before;"""
STEPS_MEASURED = 6


@dataclass(frozen=True, slots=True)
class Synced:
    """What travels after a step."""

    shapes: Mapping[str, Sequence[int]]
    """Of tensors, by name."""
    changed_share: float
    dtype: torch.dtype

    @property
    def num_values(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def num_bytes(self) -> int:
        """Of a whole copy."""
        return self.num_values * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class AlignedStretch:
    """What was measured."""

    first_seconds: float
    """Until the first step is made, with the first copy of the weights on its way before that."""
    first_bytes: Bytes
    step_seconds: float
    """From a step to the next one."""
    step_bytes: Bytes
    version_bytes: Bytes
    """Of these, for a version: workers fetch it after the last step too."""
    trainer_share: float
    """Of the time, it makes steps;"""
    sampling_share: float
    """and the workers sample; their mean."""


@dataclass(frozen=True, slots=True)
class _Mark:
    seconds: float
    sent: Bytes
    of_versions: Bytes
    trainer_busy_seconds: float
    workers_busy_seconds: float


class AlignRun:
    """One run, as long as is needed to see how it goes on."""

    def __init__(
        self,
        plan: PlanFile,
        config: AlignmentConfig,
        synced: Synced,
        *,
        prompt_tokens: int,
        vocabulary_size: int,
        workers: Sequence[WorkerPlace],
        trainer_site: str,
        charges: Charges,
    ) -> None:
        """`charges`: of the trainer, and of a worker of speed 1."""
        self._synced, self._workers, self._trainer_site = synced, workers, trainer_site
        self._num_values = min(VALUES_MAX, synced.num_values)
        self._factor = synced.num_values / self._num_values
        is_whole = self._num_values == synced.num_values
        self._shapes = synced.shapes if is_whole else {"values": (self._num_values,)}
        weights = config.weights if is_whole else self._weights(config.weights)
        # As many steps as are looked at, and the next ones are begun as in a long run.
        num_steps = max(config.num_steps, STEPS_BEFORE + STEPS_MEASURED + config.staleness_max + 1)
        self._config = replace(config, num_steps=num_steps, steps_per_checkpoint=num_steps, weights=weights)
        self._words = Words(vocabulary_size)
        self._environment = Prompts(prompt_tokens, self._words)
        self._charges = charges
        self._nodes = Nodes({TRAINER: trainer_site, **{place.name: place.site for place in workers}})
        self._marks: list[_Mark] = []
        self._ended = asyncio.Event()
        self._tasks: list[asyncio.Task[object]] = []
        self.simulation = Simulation(topology=topology_of(plan), keep_trace=False, size_of=self._size_of)

    def _weights(self, config: WeightsConfig) -> WeightsConfig:
        """As many chunks under way, of all that there are, as with the model; each is given the time that it needs."""
        true_chunks = max(1, math.ceil(self._synced.num_bytes / config.chunk_bytes))
        num_chunks = min(CHUNKS_MAX, true_chunks)
        return replace(
            config,
            chunk_bytes=1,  # each piece is one
            values_per_piece=max(1, math.ceil(self._num_values / num_chunks)),
            chunks_at_once=max(1, round(config.chunks_at_once * num_chunks / true_chunks)),
            chunk_seconds_max=config.chunk_seconds_max * true_chunks / num_chunks,
        )

    def _size_of(self, kind: str, num_bytes: int) -> int:
        if kind != AlignChunk.__name__:
            return num_bytes
        return round(max(0, num_bytes - HEADER_BYTES) * self._factor) + min(HEADER_BYTES, num_bytes)

    def run(self) -> AlignedStretch:
        """Until it goes on as before.

        Raises:
            ValueError: no batch comes together, or a worker gives up.
        """
        with self.simulation as simulation:
            for place in self._workers:
                boot = functools.partial(self._boot_worker, place.name)
                simulation.node(place.name, site=place.site, boot=boot, slowness=1 / place.speed)
            simulation.node(TRAINER, site=self._trainer_site, boot=self._boot_trainer)
            try:
                simulation.run(self._wait(), deadline=float("inf"))
            except (NoBatch, FarflungError) as error:
                raise ValueError(str(error)) from None
        first, begin, end = self._marks[0], self._marks[STEPS_BEFORE - 1], self._marks[-1]
        seconds, num_steps = end.seconds - begin.seconds, len(self._marks) - STEPS_BEFORE
        sampling = (end.workers_busy_seconds - begin.workers_busy_seconds) / seconds / len(self._workers)
        return AlignedStretch(
            first_seconds=first.seconds,
            first_bytes=first.sent,
            step_seconds=seconds / num_steps,
            step_bytes=scaled(difference(end.sent, begin.sent), 1 / num_steps),
            version_bytes=scaled(difference(end.of_versions, begin.of_versions), 1 / num_steps),
            trainer_share=min(1.0, (end.trainer_busy_seconds - begin.trainer_busy_seconds) / seconds),
            sampling_share=min(1.0, sampling),
        )

    async def _wait(self) -> None:
        waiting = asyncio.get_running_loop().create_task(self._ended.wait())
        await asyncio.wait([waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in self._tasks:
            if task.done():
                task.result()

    def _boot_trainer(self, world: World) -> None:
        synced = self._synced
        trainer = Trainer(
            world,
            self._config,
            Training(self._shapes, synced.changed_share, synced.dtype),
            self._environment,
            run=RUN,
            report=self._mark,
            charges=self._charges,
        )
        self._tasks.append(asyncio.get_running_loop().create_task(trainer.run()))

    def _boot_worker(self, name: str, world: World) -> None:
        worker = Worker(
            world,
            self._config,
            Sampling(self._words),
            name=name,
            hub=TRAINER,
            run=RUN,
            num_answers_max=self._config.prompts_per_step * self._config.answers_per_prompt,
            charges=self._charges,
        )
        self._tasks.append(asyncio.get_running_loop().create_task(worker.run(), name=name))

    def _mark(self, step: StepReport) -> None:
        trainer, *workers = [self._busy_seconds(name) for name in (TRAINER, *(one.name for one in self._workers))]
        sent = self._nodes.bytes_sent(self.simulation)
        of_versions = self._nodes.bytes_of_kinds(self.simulation, VERSION_KINDS)
        self._marks.append(_Mark(self.simulation.now(), sent, of_versions, trainer, sum(workers)))
        if len(self._marks) == STEPS_BEFORE + STEPS_MEASURED:
            self._ended.set()

    def _busy_seconds(self, name: str) -> float:
        device: Any = self.simulation.world(name).compute
        return device.busy_seconds
