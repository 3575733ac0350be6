"""A stretch of one byte per measurement in virtual time: sequencer, standby, witness and measurers that ship.

What they measure is nothing, for an entry is as long whatever it says; each measurement takes its machine's time, and
so does following the journal. The first of them also scores the model now and then.
"""

import asyncio
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from farflung.apps.plan.places import Nodes, difference, scaled, topology_of
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.sizes import Sizes
from farflung.apps.plan.stand_in import WorkerPlace
from farflung.apps.plan.training_run import Stretch
from farflung.sim.simulation import Simulation
from farflung.systems.onebyte.config import Group, RoundsConfig
from farflung.systems.onebyte.header import HASH_BYTES, RUN_ID_BYTES, Header, Schedule, TensorShape
from farflung.systems.onebyte.messages import ACTOR, WITNESS_ACTOR
from farflung.systems.onebyte.sequencer import Sequencer
from farflung.systems.onebyte.steps import Step
from farflung.systems.onebyte.views import Witness
from farflung.systems.onebyte.worker import Worker
from farflung.wire.identity import Identity
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.host import Host

CANDIDATES = (PeerId("sequencer"), PeerId("standby"))
WITNESS = PeerId("witness")
ROUNDS_BEFORE = 24
"""Until the sequencer knows how fast everybody is, and nothing is measured twice for want of that;"""
ROUNDS_MEASURED = (32, 256)
"""which are enough for signatures, of which there is one in sixteen rounds; more where rounds are small, for who
measures what again is drawn, and a message more is much in them."""
SLOTS_MEASURED = 8192
ROUNDS_PER_SEAL = RoundsConfig(num_rounds=1).rounds_per_seal
MIDDLING_CODE = 60


def _identity(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Charges:
    """Virtual seconds of a worker of speed 1."""

    slot_seconds: float
    """Of a measurement."""
    move_seconds: float = 0.0
    """Of bringing the weights up to date after a round."""
    score_seconds: float = 0.0
    """Of the first worker, every `score_rounds`."""
    score_rounds: int = 1


def num_rounds_measured(num_rounds: int, num_slots: int) -> int:
    """Of a run of so many rounds and slots in each, a multiple of those between two signatures."""
    least, most = ROUNDS_MEASURED
    return max(least, min(most, num_rounds, SLOTS_MEASURED // num_slots) // ROUNDS_PER_SEAL * ROUNDS_PER_SEAL)


class Measuring:
    """A `Learner` without weights."""

    def __init__(self, moved: Callable[[int], None]) -> None:
        """`moved` hears of every time that the weights follow the journal, with its number from 1 on."""
        self._moved = moved
        self._num_moves = 0
        self._digest = hashlib.blake2b(digest_size=HASH_BYTES)

    def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
        """Something of the size that measurements have."""
        return bytes([MIDDLING_CODE]) * num_slots

    def add(self, steps: Sequence[Step]) -> None:
        """As a learner does."""
        for step in steps:
            self._digest.update(step.weights.tobytes())
        self._num_moves += 1
        self._moved(self._num_moves)

    def digest(self) -> bytes:
        """As a learner does."""
        return self._digest.digest()


class OneByteRun:
    """One run, as long as is needed to see how it goes on."""

    def __init__(
        self,
        plan: PlanFile,
        sizes: Sizes,
        config: RoundsConfig,
        workers: Sequence[WorkerPlace],
        *,
        num_slots: int,
        charges: Charges,
        dtype: str,
    ) -> None:
        """The sequencer and its standby are at the site of the first worker."""
        self._config, self._workers, self._charges = config, workers, charges
        self._header = header_of(sizes, num_slots, dtype)
        self._awaited = 0
        self._reached = asyncio.Event()
        self._running: list[Worker] = []
        self._tasks: list[asyncio.Task[object]] = []
        self._nodes = Nodes({place.name: place.site for place in workers})
        self.simulation = Simulation(topology=topology_of(plan), keep_trace=False)

    def run(self, num_rounds: int) -> Stretch:
        """Until it goes on as before in a run of so many rounds, whose messages grow with their number."""
        with self.simulation as simulation:
            self._start(simulation)
            self._until(ROUNDS_BEFORE)
            begun_at, before, busy = simulation.now(), self._nodes.bytes_sent(simulation), self._busy_seconds()
            num_before = self._num_rounds()
            self._until(num_before + num_rounds_measured(num_rounds, self._header.num_slots))
            seconds, num_measured = simulation.now() - begun_at, self._num_rounds() - num_before
            sent = difference(self._nodes.bytes_sent(simulation), before)
            busy_share = (self._busy_seconds() - busy) / seconds / len(self._workers)
        return Stretch(
            steps_per_second=num_measured / seconds,
            bytes_per_step=scaled(sent, 1 / num_measured),
            busy_share=min(1.0, busy_share),
            round_seconds=seconds / num_measured,
        )

    def _start(self, simulation: Simulation) -> None:
        home = self._workers[0].site
        for name, boot in (
            (WITNESS, self._boot_witness),
            *((name, self._boot_candidate) for name in CANDIDATES),
        ):
            self._nodes.sites[name] = home
            simulation.node(name, site=home, boot=boot)
        for place in self._workers:
            boot = functools.partial(self._boot_worker, place.name)
            simulation.node(place.name, site=place.site, boot=boot, slowness=1 / place.speed)

    def _boot_witness(self, world: World) -> None:
        Host(Witness.open(world, CANDIDATES, self._header.run), world, WITNESS_ACTOR)

    def _boot_candidate(self, world: World) -> None:
        group = Group(candidates=CANDIDATES, witness=WITNESS)
        Host(Sequencer.open(world, self._header, self._config, group, _identity("run")), world, ACTOR)

    def _boot_worker(self, name: str, world: World) -> None:
        charges, is_scoring = self._charges, name == self._workers[0].name

        def moved(number: int) -> None:
            is_due = is_scoring and number % charges.score_rounds == 0
            seconds = charges.move_seconds + (charges.score_seconds if is_due else 0.0)
            world.compute.submit(lambda _: None, lambda: None, seconds=seconds)  # before whatever is measured next
            self._look()

        worker = Worker(
            world,
            self._header,
            self._config,
            Group(candidates=CANDIDATES, witness=WITNESS),
            _identity(name),
            Measuring(moved),
            name=name,
            seconds_per_slot=charges.slot_seconds,
        )
        self._running.append(worker)
        self._tasks.append(asyncio.get_running_loop().create_task(worker.run(), name=name))

    def _num_rounds(self) -> int:
        return max(worker.report().num_rounds for worker in self._running)

    def _busy_seconds(self) -> float:
        devices: list[Any] = [self.simulation.world(place.name).compute for place in self._workers]
        return sum(device.busy_seconds for device in devices)

    def _until(self, num_rounds: int) -> None:
        """Let it have so many rounds, up to the moment when the first worker hears of the last one."""
        self._awaited, self._reached = num_rounds, asyncio.Event()
        self.simulation.run(self._wait(self._reached), deadline=float("inf"))

    async def _wait(self, reached: asyncio.Event) -> None:
        """Raises what a worker has failed with."""
        waiting = asyncio.get_running_loop().create_task(reached.wait())
        await asyncio.wait([waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:
            if task.done():
                task.result()

    def _look(self) -> None:
        if self._num_rounds() >= self._awaited:
            self._reached.set()


def header_of(sizes: Sizes, num_slots: int, dtype: str) -> Header:
    """Of a run that tunes everything."""
    blocks = [TensorShape(f"block {number}", (sizes.block_parameters,)) for number in range(sizes.num_blocks)]
    return Header(
        run=bytes(RUN_ID_BYTES),
        base=bytes(HASH_BYTES),
        base_name=sizes.name,
        dtype=dtype,
        tensors=tuple(blocks),
        epsilon=1e-3,
        exponent=24,
        schedule=Schedule(rate=100),
        num_slots=num_slots,
        sequencer=_identity("run").public_key,
    )
