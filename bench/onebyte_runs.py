"""A whole run of one byte per gradient in the simulator: sequencer, standby and witness at a hub, and measurers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from io import BytesIO

from farflung.sim.simulation import Simulation
from farflung.sim.topology import Topology
from farflung.systems.onebyte.config import Group, RoundsConfig
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.journal import JournalWriter
from farflung.systems.onebyte.messages import ACTOR, WITNESS_ACTOR
from farflung.systems.onebyte.records import Record
from farflung.systems.onebyte.sequencer import Sequencer
from farflung.systems.onebyte.views import Witness
from farflung.systems.onebyte.worker import Learner, Worker
from farflung.wire.identity import Identity
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.host import Host


def key(name: str) -> Identity:
    """A key that follows from a name."""
    return Identity(hashlib.sha256(name.encode()).digest())


RUN_KEY = key("run")
"""Of whoever orders; its public half belongs into the header."""


class SimulatedRun:
    """One that begins when it is asked for its records."""

    def __init__(
        self,
        header: Header,
        config: RoundsConfig,
        learner: Callable[[], Learner],
        num_machines: int,
        *,
        topology: Topology | None = None,
        seconds_per_slot: float = 0.001,
    ) -> None:
        """`learner` makes one machine's; machines are at the site "away" of the topology."""
        self._header, self._config, self._learner = header, config, learner
        self._seconds_per_slot = seconds_per_slot
        self._group = Group(candidates=(PeerId("first"), PeerId("second")), witness=PeerId("witness"))
        self._sequencers: dict[str, Sequencer] = {}
        self._tasks: list[asyncio.Task[object]] = []
        self.learners: dict[str, Learner] = {}
        """By the machine's name."""
        self.names = [f"machine-{number}" for number in range(num_machines)]
        self.simulation = Simulation(topology=topology or Topology(), keep_trace=False)
        self.simulation.node("witness", boot=self._boot_witness)
        for name in self._group.candidates:
            self.simulation.node(name, boot=self._boot_candidate)
        for name in self.names:
            self.simulation.node(name, site="away", boot=self._boot_machine)

    def _boot_witness(self, world: World) -> None:
        Host(Witness.open(world, self._group.candidates, self._header.run), world, WITNESS_ACTOR)

    def _boot_candidate(self, world: World) -> None:
        role = Sequencer.open(world, self._header, self._config, self._group, RUN_KEY)
        self._sequencers[world.network.peer] = role
        Host(role, world, ACTOR)

    def _boot_machine(self, world: World) -> None:
        name = str(world.network.peer)
        learner = self.learners[name] = self._learner()
        worker = Worker(
            world,
            self._header,
            self._config,
            self._group,
            key(name),
            learner,
            name=name,
            seconds_per_slot=self._seconds_per_slot,
        )
        self._tasks.append(asyncio.get_running_loop().create_task(worker.run(), name=name))

    def run(self) -> Sequence[Record]:
        """Let it run to its end, within a `with` block of `simulation`: what the sequencer has stored."""

        async def wait() -> None:
            await asyncio.gather(*self._tasks)

        self.simulation.run(wait(), deadline=1e6)
        return self._sequencers["first"].records

    @property
    def journal_bytes(self) -> int:
        """Of all records as they are stored."""
        return sum(map(len, self._sequencers["first"].replica.log.contents))

    @property
    def is_same(self) -> bool:
        """Whether all machines hold the same."""
        return len({learner.digest() for learner in self.learners.values()}) == 1


def journal_of(header: Header, records: Sequence[Record]) -> bytes:
    """The file that these records are."""
    file = BytesIO()
    writer = JournalWriter(file, header)
    for record in records:
        writer.add(record)
    return file.getvalue()
