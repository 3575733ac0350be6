"""A run of one byte per gradient in the simulator: a sequencer, standbys, a witness, measurers that come and go."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import torch

from farflung.sim.faults import Faults
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Topology
from farflung.systems.onebyte.accumulator import Accumulators
from farflung.systems.onebyte.code import encode_projections
from farflung.systems.onebyte.config import Group, RoundsConfig
from farflung.systems.onebyte.directions import draw_directions
from farflung.systems.onebyte.header import Header, TensorShape, schedule_of
from farflung.systems.onebyte.messages import ACTOR, WITNESS_ACTOR
from farflung.systems.onebyte.sequencer import Sequencer
from farflung.systems.onebyte.sharing import SharedSlots
from farflung.systems.onebyte.steps import Step
from farflung.systems.onebyte.views import Witness
from farflung.systems.onebyte.worker import Learner, Told, Worker
from farflung.wire.identity import Identity
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.errors import FarflungError
from farflung.world.host import Host

EXPONENT = 24
SHAPE = (4, 6)
RUN_SITE = "hub"


def identity_of(name: str) -> Identity:
    """A key that follows from a name."""
    return Identity(hashlib.sha256(name.encode()).digest())


def header_of(
    num_slots: int = 16, staleness_rounds_max: int = 4, rate: float = 0.1, shared: SharedSlots | None = None
) -> Header:
    """Of a run that tunes one small matrix; `shared`: by participants with data of their own."""
    return Header(
        run=bytes(range(16)),
        base=bytes(32),
        base_name="bowl",
        dtype="float32",
        tensors=(TensorShape("x", SHAPE),),
        epsilon=1e-3,
        exponent=EXPONENT,
        schedule=schedule_of(rate, num_slots=num_slots, exponent=EXPONENT),
        num_slots=num_slots,
        staleness_rounds_max=staleness_rounds_max,
        sequencer=identity_of("run").public_key,
        shared=msgspec.UNSET if shared is None else shared,
    )


class Bowl:
    """Weights 0 and the loss |w - target|^2 / 2, whose slopes are integers in units of 2^-K: exact in any order."""

    def __init__(self, header: Header, data: int = 7) -> None:
        """`data`: another target for other data."""
        self.header = header
        self.accumulators = Accumulators(header)
        generator = torch.Generator().manual_seed(data)
        self._target = torch.randint(-(1 << EXPONENT), 1 << EXPONENT, SHAPE, generator=generator)
        self.num_measured = 0

    @property
    def loss(self) -> float:
        return float((self._slopes().double() * 2.0**-EXPONENT).square().sum()) / 2

    def _slopes(self) -> torch.Tensor:
        return -self.accumulators.sums["x"].long() - self._target

    def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
        self.num_measured += num_slots
        drawn = draw_directions(self.header, self.header.tensors[0], round_number, first_slot, num_slots)
        slopes = (drawn.entries(SHAPE).long() * self._slopes()).flatten(1).sum(1)
        return encode_projections([value * 2.0**-EXPONENT for value in slopes.tolist()], self.header.code_exponent_min)

    def add(self, steps: Sequence[Step]) -> None:
        self.accumulators.add(steps)

    def digest(self) -> bytes:
        return self.accumulators.digest()


class Liar(Bowl):
    """Reports every slope with the wrong sign, and as large as a byte can say if it is greedy."""

    is_greedy = False

    def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
        codes = super().measure(round_number, first_slot, num_slots)
        return bytes((code ^ 128) | (127 if self.is_greedy else 0) for code in codes)


@dataclass
class SimulatedOneByte:
    """Node names: those of `candidates`, "witness" (if there is more than one candidate), and the measurers'."""

    config: RoundsConfig
    workers: Mapping[str, float]
    """Name -> slowness."""
    header: Header = field(default_factory=header_of)
    candidates: tuple[str, ...] = ("first",)
    sites: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of measurers and candidates; default: all at the hub."""
    learner: Callable[[str, Header], Learner] = lambda name, header: Bowl(header)
    seconds_per_slot: float = 0.01
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    topology: Topology | None = None
    keep_trace: bool = True

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.simulation = Simulation(
            seed=self.seed, faults=self.faults, topology=self.topology, keep_trace=self.keep_trace
        )
        peers = tuple(PeerId(name) for name in self.candidates)
        self.group = Group(candidates=peers, witness=PeerId("witness") if len(peers) > 1 else None)
        self.sequencers: dict[str, Sequencer] = {}
        self.learners: dict[str, Learner] = {}
        """Of the newest life of each measurer."""
        self.running: dict[str, Worker] = {}
        self.reports: dict[str, Told] = {}
        self.errors: dict[str, FarflungError] = {}
        self._tasks: list[asyncio.Task[None]] = []
        if self.group.witness is not None:
            self.simulation.node("witness", site=self.sites.get("witness", RUN_SITE), boot=self._boot_witness)
        for name in self.candidates:
            self.simulation.node(name, site=self.sites.get(name, RUN_SITE), boot=self._boot_candidate)
        for name, slowness in self.workers.items():
            self.add_worker(name, slowness)

    def __enter__(self) -> "SimulatedOneByte":
        return self

    def __exit__(self, *exception: object) -> None:
        self.simulation.__exit__(*exception)  # pyright: ignore[reportArgumentType]

    def add_worker(self, name: str, slowness: float = 1.0) -> None:
        """A measurer joins."""
        site = self.sites.get(name, RUN_SITE)
        self.simulation.node(name, site=site, slowness=slowness, boot=self._boot_worker)

    def _boot_witness(self, world: World) -> Host:
        return Host(Witness.open(world, self.group.candidates, self.header.run), world, WITNESS_ACTOR)

    def _boot_candidate(self, world: World) -> Host:
        sequencer = Sequencer.open(world, self.header, self.config, self.group, identity_of("run"))
        self.sequencers[world.network.peer] = sequencer
        return Host(sequencer, world, ACTOR)

    def _boot_worker(self, world: World) -> None:
        name = str(world.network.peer)
        self.learners[name] = self.learner(name, self.header)
        worker = Worker(
            world,
            self.header,
            self.config,
            self.group,
            identity_of(name),
            self.learners[name],
            name=name,
            seconds_per_slot=self.seconds_per_slot,
        )
        self.running[name] = worker

        async def work() -> None:
            try:
                self.reports[name] = await worker.run()
            except FarflungError as error:
                self.errors[name] = error

        self._tasks.append(asyncio.get_running_loop().create_task(work(), name=name))

    def run(self, deadline: float = 10_000.0, names: Sequence[str] | None = None) -> dict[str, Told]:
        """Until these measurers (all of them) have ended; their reports by name."""

        async def wait() -> None:
            while not self._are_done(names or list(self.running)):  # noqa: ASYNC110 (they come and go)
                await asyncio.sleep(0.5)

        self.simulation.run(wait(), deadline=deadline)
        return self.reports

    def _are_done(self, names: Sequence[str]) -> bool:
        return all(name in self.reports or name in self.errors for name in names)

    @property
    def sequencer(self) -> Sequencer:
        """The candidate that orders, in the newest view."""
        ordering = [each for each in self.sequencers.values() if each.replica.is_sequencer]
        return max(ordering, key=lambda each: each.replica.view.epoch)

    def digests(self) -> dict[str, bytes]:
        """Of every measurer's accumulators."""
        return {name: learner.digest() for name, learner in self.learners.items()}
