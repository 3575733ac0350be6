"""A real model tuned over simulated links, with kills: the same journal from one machine and from several."""

from io import BytesIO

import pytest
import torch

from farflung.sim.faults import Faults
from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.header import Header, schedule_of
from farflung.systems.onebyte.journal import JournalWriter, read_journal
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.objective import Batch, NextTokenLoss
from farflung.systems.onebyte.records import Round
from farflung.systems.onebyte.replay import replay
from tests.onebyte_journals import header_for, tiny_model
from tests.onebytes import SimulatedOneByte, identity_of

NUM_SLOTS = 16
CONFIG = RoundsConfig(
    num_rounds=6,
    entries_per_message=4,
    slots_per_lease_min=4,
    audit_share=0.0,
    reissue_seconds=2.0,
    seal_seconds_max=2.0,
    ask_again_seconds=0.5,
    silence_seconds=2.0,
    beat_seconds=0.25,
    absence_seconds=1.0,
)


def data_of(round_number: int) -> Batch:
    starts = torch.randint(0, 97, (4, 1), generator=torch.Generator().manual_seed(round_number))
    return {"input_ids": (starts + 3 * torch.arange(8)) % 97}


def header() -> Header:
    schedule = schedule_of(0.02, num_slots=NUM_SLOTS, exponent=24)
    sequencer = identity_of("run").public_key
    return header_for(
        tiny_model(), num_slots=NUM_SLOTS, epsilon=2e-3, exponent=24, schedule=schedule, sequencer=sequencer
    )


def learner(name: str, header: Header) -> ModelLearner:
    return ModelLearner(header, tiny_model(), NextTokenLoss(), data_of, num_directions=4)


def codes_of(run: SimulatedOneByte) -> list[bytes]:
    """The bytes of each round, by slot."""
    rounds = [record for record in run.sequencer.records if isinstance(record, Round)]
    return [
        b"".join(part.codes for part in sorted(record.parts, key=lambda part: part.first_slot)) for record in rounds
    ]


def simulated(names: list[str], faults: Faults | None = None) -> SimulatedOneByte:
    return SimulatedOneByte(
        CONFIG,
        {name: 1.0 + number for number, name in enumerate(names)},
        header=header(),
        candidates=("first", "second"),
        learner=learner,
        seconds_per_slot=0.05,
        faults=faults or Faults(),
    )


@pytest.fixture(scope="module")
def alone() -> tuple[list[bytes], bytes]:
    """What one machine without any faults writes, and the hash of its sums."""
    with simulated(["a"]) as run:
        run.run(deadline=100)
        return codes_of(run), run.digests()["a"]


def test_machines_and_sequencers_that_die_write_what_one_machine_writes(alone: tuple[list[bytes], bytes]) -> None:
    faults = Faults().crash("first", at=0.9).crash("b", at=0.6).restart("b", at=2.5)
    with simulated(["a", "b", "c"], faults) as run:
        run.run(deadline=100)
        assert run.sequencer is run.sequencers["second"]
        assert codes_of(run) == alone[0]
        assert set(run.digests().values()) == {alone[1]}


def test_the_journal_of_a_run_replays_to_the_weights_of_its_machines(alone: tuple[list[bytes], bytes]) -> None:
    with simulated(["a", "b"]) as run:
        run.run(deadline=100)
        file = BytesIO()
        writer = JournalWriter(file, run.header)
        for record in run.sequencer.records:
            writer.add(record)
        file.seek(0)
        replayed = tiny_model()
        assert replay(read_journal(file, name="run.flj"), dict(replayed.named_parameters())) == alone[1]
