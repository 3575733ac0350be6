"""Measuring a journal again: honest entries are found as they are, and who wrote other signs is shown."""

from io import BytesIO
from random import Random
from typing import Any

import pytest
import torch

from farflung.systems.onebyte.code import SIGN_BIT
from farflung.systems.onebyte.header import Header, schedule_of
from farflung.systems.onebyte.held_journal import HeldJournal
from farflung.systems.onebyte.journal import JournalSection, JournalWriter, read_journal
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.objective import Batch, NextTokenLoss
from farflung.systems.onebyte.records import Part, Participant, Revocation, encode_record
from farflung.systems.onebyte.remeasuring import remeasured
from farflung.systems.onebyte.sharing import SharedSlots
from tests.onebyte_journals import SEQUENCER, header_for, identity_of, tiny_model

NUM_SLOTS, NUM_ROUNDS, LIAR, REVOKED_AT = 8, 8, 1, 5


def header(**changes: Any) -> Header:
    schedule = schedule_of(0.02, num_slots=NUM_SLOTS, exponent=24)
    return header_for(tiny_model(), num_slots=NUM_SLOTS, epsilon=2e-3, exponent=24, schedule=schedule, **changes)


def data_of(round_number: int) -> Batch:
    starts = torch.randint(0, 97, (4, 1), generator=torch.Generator().manual_seed(round_number))
    return {"input_ids": (starts + 3 * torch.arange(8)) % 97}


def learner(of: Header, seed: int = 0) -> ModelLearner:
    return ModelLearner(of, tiny_model(seed), NextTokenLoss(), data_of, num_directions=8)


@pytest.fixture(scope="module")
def section() -> JournalSection:
    """Two measure half of each round; one tells the opposite, and is revoked before round 5."""
    of, file = header(), BytesIO()
    writer, held, model = JournalWriter(file, of), HeldJournal(of), learner(of)
    records = [Participant(identity_of(number).public_key, f"node-{number}") for number in (0, 1)]
    for record in records:
        writer.add(record)
        held.take(encode_record(record))
    for number in range(NUM_ROUNDS):
        if number == REVOKED_AT:
            revocation = Revocation(LIAR, 0, number, "other signs")
            writer.add(revocation)
            model.add(held.take(encode_record(revocation)))
        half = NUM_SLOTS // 2
        honest = model.measure(number, 0, half)
        lies = bytes(code ^ SIGN_BIT for code in model.measure(number, half, half))
        record = writer.add_round([Part(0, number, 0, honest), Part(LIAR, number, half, lies)])
        model.add(held.take(encode_record(record)))
    for number in (0, 1):
        writer.seal(number, identity_of(number))
    writer.close(SEQUENCER)
    file.seek(0)
    return read_journal(file, name="run.flj")[0]


def test_honest_entries_are_found_as_they_are_and_lies_are_not(section: JournalSection) -> None:
    rounds: list[int] = []
    found = remeasured(section, learner(section.header), 1.0, Random(0).random, rounds.append)
    assert rounds == list(range(NUM_ROUNDS))
    honest, liar = found[0], found[LIAR]
    assert honest.num_measured == honest.num_equal == NUM_ROUNDS * NUM_SLOTS // 2 and honest.num_opposed == 0
    assert liar.num_equal == 0 and liar.num_opposed == liar.num_large > 10


def test_a_share_is_measured_and_chosen_by_chance(section: JournalSection) -> None:
    counts = [
        sum(
            each.num_measured
            for each in remeasured(section, learner(section.header), 0.2, Random(seed).random).values()
        )
        for seed in (0, 1)
    ]
    assert all(5 <= count <= 22 for count in counts) and NUM_ROUNDS * NUM_SLOTS == 64
    with pytest.raises(ValueError, match="give a larger share"):
        remeasured(section, learner(section.header), 1e-9, Random(0).random)


def test_on_other_weights_or_data_signs_are_by_chance(section: JournalSection) -> None:
    found = remeasured(section, learner(section.header, seed=5), 1.0, Random(0).random)
    assert found[0].num_equal < 0.3 * found[0].num_measured and found[0].num_opposed > 0.2 * found[0].num_large


def test_private_data_cannot_be_measured_again() -> None:
    of = header(shared=SharedSlots())
    with pytest.raises(ValueError, match="data of their own"):
        remeasured(JournalSection(of, None), learner(of), 1.0, Random(0).random)  # type: ignore[arg-type]
