"""Bytes of one byte per gradient on simulated wires, for a model of 1.3 billion parameters, beside what others send.

The real sequencer, standby, witness and measurers talk; what they measure is synthetic, since only its size travels.
Counted are frames, with signatures and joining; below them gRPC, TLS and TCP add some 80 bytes to each packet.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.onebyte_runs import RUN_KEY, SimulatedRun
from bench.report import Report, bench_arguments
from farflung.apps.finetune.advice import Setting, advise
from farflung.sim.topology import Link, Topology
from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.header import Header, Schedule, TensorShape
from farflung.systems.onebyte.records import Round
from farflung.systems.onebyte.steps import Step

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


def count(num_machines: int, num_slots: int, config: RoundsConfig, topology: Topology) -> Counted:
    """A sequencer and a standby at a hub, and machines there or far away, until the run is over."""
    header = Header(
        run=bytes(16),
        base=bytes(32),
        base_name="a model of 1.3 billion parameters",
        dtype="bfloat16",
        tensors=(TensorShape("all", (NUM_PARAMETERS // 2048, 2048)),),
        epsilon=1e-3,
        exponent=24,
        schedule=Schedule(rate=100),
        num_slots=num_slots,
        sequencer=RUN_KEY.public_key,
    )
    run = SimulatedRun(header, config, Synthetic, num_machines, topology=topology)
    with run.simulation as simulation:
        num_entries = sum(len(record.codes) for record in run.run() if isinstance(record, Round))
        meters = [simulation.traffic(name) for name in run.names]
        return Counted(
            num_entries=num_entries,
            sent=sum(meter.total(sent=True) for meter in meters) / num_entries,
            received=sum(meter.total(sent=False) for meter in meters) / num_entries / len(meters),
            journal=run.journal_bytes / num_entries,
            seconds=simulation.now(),
            is_same=run.is_same,
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


def crossovers() -> list[tuple[str, float, float]]:
    """Batch and machine, and below which Mbit/s one byte is faster than back-propagation: for sure, and at best."""
    rows: list[tuple[str, float, float]] = []
    for tokens, machine, flops in ((512, "a core", 5e10), (512, "a GPU", 5e13), (16_384, "a GPU", 5e13)):
        setting = Setting(
            num_parameters=NUM_PARAMETERS,
            bytes_per_parameter=2.0,
            tokens_per_entry=tokens,
            entries_per_round=NUM_MACHINES * ENTRIES_PER_MESSAGE,
            num_machines=NUM_MACHINES,
            bytes_per_second=SATELLITE.bytes_per_second or 0.0,
            latency_seconds=0.05,
            flops_per_second=flops,
        )
        surely, at_best = advise(setting).crossover_bits_per_second
        rows.append((f"{tokens} tokens, {machine} ({flops:.0e} FLOP/s)", surely / 1e6, at_best / 1e6))
    return rows


def main() -> int:
    """Run, print, and say whether the claims hold."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    num_rounds = 96 if arguments.quick else 512
    report = Report("onebyte_traffic", {"machines": NUM_MACHINES, "rounds": num_rounds, "message": ENTRIES_PER_MESSAGE})
    config = RoundsConfig(num_rounds=num_rounds, audit_share=0.0, entries_per_message=ENTRIES_PER_MESSAGE)
    counted = count(NUM_MACHINES, NUM_MACHINES * ENTRIES_PER_MESSAGE, config, Topology())
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
    report.table(
        "Crossover: Mbit/s of a link below which one byte is faster than DDP",
        ("batch", "surely", "at best"),
        crossovers(),
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
        far = count(1, num_slots, patient(24), Topology().link("site", "away", SATELLITE))
        rate = far.num_entries / far.seconds
        text = f"entries a second over 2.4 kbit/s and 0.6 s, {num_slots} in a round"
        report.claim(text, f"at least {rate_min}", f"{rate:.0f}", rate >= rate_min)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
