"""Bytes of one byte per gradient on simulated wires, for a model of 1.3 billion parameters, beside what others send.

The real sequencer, standby, witness and measurers talk; what they measure is synthetic, since only its size travels.
Counted are frames, with signatures and joining; below them gRPC, TLS and TCP add some 80 bytes to each packet.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report import Report, bench_arguments
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Link, Topology
from farflung.systems.onebyte.config import Group, RoundsConfig
from farflung.systems.onebyte.header import Header, Schedule, TensorShape
from farflung.systems.onebyte.messages import ACTOR, WITNESS_ACTOR
from farflung.systems.onebyte.records import Round
from farflung.systems.onebyte.sequencer import Sequencer
from farflung.systems.onebyte.steps import Step
from farflung.systems.onebyte.views import Witness
from farflung.systems.onebyte.worker import Worker
from farflung.wire.identity import Identity
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.host import Host

NUM_MACHINES = 4
ENTRIES_PER_MESSAGE = 128
NUM_PARAMETERS = 1_300_000_000
BYTES_PER_ENTRY_MAX = 1.1
LORA_PARAMETERS = 24 * 2 * 2 * 2048 * 8
"""Rank 8 on the queries and values of OPT-1.3B."""
SATELLITE = Link(latency_seconds=0.3, bytes_per_second=300)
"""2.4 kbit/s, 0.6 s there and back."""
FEDKSEED_ROUND_BYTES = 18_000
"""As published, at most."""
DECOMFL_RUN_BYTES = 120_000, 240_000
"""As published for OPT-1.3B on SST-2 with 5 and 10 directions; floats of 4 bytes, no headers, no signatures."""


class Synthetic:
    """Bytes as spread as those of real measurements: a sign and the logarithm of a normal magnitude, from a hash."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=32)

    def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
        seeds = (f"{round_number} {slot}".encode() for slot in range(first_slot, first_slot + num_slots))
        return bytes(self._code(hashlib.blake2b(seed, digest_size=17).digest()) for seed in seeds)

    def _code(self, noise: bytes) -> int:
        # Sixteen bytes add up to something near a normal variable; its size in eighths of an octave.
        size = abs(sum(noise[:16]) - 2040) + 1
        return min(127, 40 + int(8 * size.bit_length() + 8 * size / (1 << size.bit_length()))) | (noise[16] & 128)

    def add(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self._digest.update(step.weights.tobytes())

    def digest(self) -> bytes:
        return self._digest.digest()


def key(name: str) -> Identity:
    """A key that follows from a name."""
    return Identity(hashlib.sha256(name.encode()).digest())


@dataclass(frozen=True)
class Counted:
    """What a run's measurers sent and received."""

    num_entries: int
    sent: float
    """Bytes for each entry."""
    received: float
    """By each machine, for each entry of anybody."""
    journal: float
    """Bytes of the journal for each entry."""
    seconds: float
    is_same: bool
    """All machines hold the same."""


class Run:
    """A sequencer and a standby at a hub, and machines there or far away."""

    def __init__(self, num_machines: int, num_slots: int, config: RoundsConfig, topology: Topology) -> None:
        self._config = config
        self._header = Header(
            run=bytes(16),
            base=bytes(32),
            base_name="a model of 1.3 billion parameters",
            dtype="bfloat16",
            tensors=(TensorShape("all", (NUM_PARAMETERS // 2048, 2048)),),
            epsilon=1e-3,
            exponent=24,
            schedule=Schedule(rate=100),
            num_slots=num_slots,
            sequencer=key("run").public_key,
        )
        self._group = Group(candidates=(PeerId("first"), PeerId("second")), witness=PeerId("witness"))
        self._sequencers: dict[str, Sequencer] = {}
        self._learners: list[Synthetic] = []
        self._tasks: list[asyncio.Task[object]] = []
        self._names = [f"machine-{number}" for number in range(num_machines)]
        self.simulation = Simulation(topology=topology, keep_trace=False)
        self.simulation.node("witness", boot=self._boot_witness)
        for name in self._group.candidates:
            self.simulation.node(name, boot=self._boot_candidate)
        for name in self._names:
            self.simulation.node(name, site="away", boot=self._boot_machine)

    def _boot_witness(self, world: World) -> None:
        Host(Witness.open(world, self._group.candidates, self._header.run), world, WITNESS_ACTOR)

    def _boot_candidate(self, world: World) -> None:
        role = Sequencer.open(world, self._header, self._config, self._group, key("run"))
        self._sequencers[world.network.peer] = role
        Host(role, world, ACTOR)

    def _boot_machine(self, world: World) -> None:
        name, learner = str(world.network.peer), Synthetic()
        self._learners.append(learner)
        worker = Worker(
            world, self._header, self._config, self._group, key(name), learner, name=name, seconds_per_slot=0.001
        )
        self._tasks.append(asyncio.get_running_loop().create_task(worker.run(), name=name))

    def count(self) -> Counted:
        """Let it run to its end."""

        async def wait() -> None:
            await asyncio.gather(*self._tasks)

        with self.simulation as simulation:
            simulation.run(wait(), deadline=1e6)
            replica = self._sequencers["first"].replica
            records = self._sequencers["first"].records
            num_entries = sum(len(record.codes) for record in records if isinstance(record, Round))
            meters = [simulation.traffic(name) for name in self._names]
            return Counted(
                num_entries=num_entries,
                sent=sum(meter.total(sent=True) for meter in meters) / num_entries,
                received=sum(meter.total(sent=False) for meter in meters) / num_entries / len(meters),
                journal=sum(map(len, replica.log.contents)) / num_entries,
                seconds=simulation.now(),
                is_same=len({learner.digest() for learner in self._learners}) == 1,
            )


def patient(num_rounds: int) -> RoundsConfig:
    """For links on which a message takes seconds."""
    return RoundsConfig(
        num_rounds=num_rounds,
        audit_share=0.0,
        entries_per_message=ENTRIES_PER_MESSAGE,
        round_seconds_max=600.0,
        reissue_seconds=300.0,
        ask_again_seconds=60.0,
        silence_seconds=600.0,
    )


def others(counted: Counted, num_rounds: int) -> list[tuple[str, float, float]]:
    """Method, bytes that a machine sends in a step or round, and how many times ours."""
    ours = counted.sent * counted.num_entries / num_rounds / NUM_MACHINES
    ring = 2 * (NUM_MACHINES - 1) / NUM_MACHINES * 2 * NUM_PARAMETERS
    rows = [
        ("ours: a round of 128 entries for each machine", ours),
        ("DDP in bfloat16, a ring, one step", ring),
        ("FedAvg in bfloat16, upward, one round", 2.0 * NUM_PARAMETERS),
        ("FedAvg of LoRA (rank 8) in bfloat16, upward, one round", 2.0 * LORA_PARAMETERS),
        ("FedKSeed, one round, as published", float(FEDKSEED_ROUND_BYTES)),
    ]
    return [(name, num_bytes, num_bytes / ours) for name, num_bytes in rows]


def main() -> int:
    """Run, print, and say whether the claims hold."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    num_rounds = 96 if arguments.quick else 512
    report = Report("onebyte_traffic", {"machines": NUM_MACHINES, "rounds": num_rounds, "message": ENTRIES_PER_MESSAGE})
    config = RoundsConfig(num_rounds=num_rounds, audit_share=0.0, entries_per_message=ENTRIES_PER_MESSAGE)
    counted = Run(NUM_MACHINES, NUM_MACHINES * ENTRIES_PER_MESSAGE, config, Topology()).count()
    report.table("Bytes that a machine sends", ("method", "bytes", "times ours"), others(counted, num_rounds))
    total = counted.sent * counted.num_entries
    report.table(
        "A whole run",
        ("what", "bytes"),
        [
            (f"ours: {counted.num_entries} entries, all machines together", total),
            ("its journal", counted.journal * counted.num_entries),
            *(
                (f"DeComFL, published, {n} directions", float(b))
                for n, b in zip((5, 10), DECOMFL_RUN_BYTES, strict=True)
            ),
        ],
    )
    limit = f"at most {BYTES_PER_ENTRY_MAX}"
    report.claim("bytes sent for each entry", limit, f"{counted.sent:.3f}", counted.sent <= BYTES_PER_ENTRY_MAX)
    report.claim(
        "bytes received by each machine for each entry",
        limit,
        f"{counted.received:.3f}",
        counted.received <= BYTES_PER_ENTRY_MAX,
    )
    report.claim("all machines hold the same in the end", "yes", counted.is_same, counted.is_same)
    for num_slots, rate_min in ((128, 60), (512, 100)):
        far = Run(1, num_slots, patient(24), Topology().link("site", "away", SATELLITE)).count()
        rate = far.num_entries / far.seconds
        text = f"entries a second over 2.4 kbit/s and 0.6 s, {num_slots} in a round"
        report.claim(text, f"at least {rate_min}", f"{rate:.0f}", rate >= rate_min)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
