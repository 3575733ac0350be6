"""Bytes on the wire for each entry, signatures and headers included, and what a satellite link carries."""

from dataclasses import dataclass

import pytest

from farflung.sim.topology import Link, Topology
from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.records import Round
from tests.onebytes import Bowl, SimulatedOneByte, header_of

NUM_ROUNDS = 96
SATELLITE = Link(latency_seconds=0.3, bytes_per_second=300)
"""2.4 kbit/s, 0.6 s there and back."""


@dataclass(frozen=True)
class Counted:
    """Bytes of all measurers, each for an entry."""

    sent: float
    received: float
    """By each measurer, for each entry of anybody."""
    entries_per_second: float


def count(run: SimulatedOneByte) -> Counted:
    """Let the run end and count."""
    run.run(deadline=100_000)
    rounds = [record for record in run.sequencer.records if isinstance(record, Round)]
    num_entries = sum(len(record.codes) for record in rounds)
    meters = [run.simulation.traffic(name) for name in run.workers]
    sent = sum(meter.total(sent=True) for meter in meters) / num_entries
    received = sum(meter.total(sent=False) for meter in meters) / num_entries / len(meters)
    return Counted(sent, received, num_entries / run.simulation.now())


@pytest.mark.parametrize("num_workers", [1, 4])
def test_an_entry_costs_at_most_11_tenths_of_a_byte_at_128_a_message(num_workers: int) -> None:
    config = RoundsConfig(num_rounds=NUM_ROUNDS, audit_share=0.0)
    names = {f"w{number}": 1.0 for number in range(num_workers)}
    header = header_of(num_slots=128 * num_workers)
    with SimulatedOneByte(config, names, header=header, keep_trace=False) as run:
        counted = count(run)
        assert counted.sent <= 1.1, "with joining and signatures"
        assert counted.received <= (1.25 if num_workers == 1 else 1.1), "a round of 128 has a head of its own"


@pytest.mark.parametrize(("num_slots", "rate_min"), [(128, 65.0), (512, 110.0)])
def test_a_satellite_link_is_enough(num_slots: int, rate_min: float) -> None:
    config = RoundsConfig(
        num_rounds=24,
        audit_share=0.0,
        round_seconds_max=300.0,
        reissue_seconds=200.0,
        ask_again_seconds=30.0,
        silence_seconds=200.0,
    )
    topology = Topology().link("hub", "orbit", SATELLITE)
    header = header_of(num_slots=num_slots)
    with SimulatedOneByte(
        config, {"far": 1.0}, header=header, sites={"far": "orbit"}, topology=topology, seconds_per_slot=0.001
    ) as run:
        counted = count(run)
        assert counted.entries_per_second > rate_min
        learner = run.learners["far"]
        assert isinstance(learner, Bowl) and learner.loss < 0.01
