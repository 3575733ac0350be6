"""Tuning for real, without a network: the loss falls, machines that share slots write one journal, replay is exact."""

from io import BytesIO
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from farflung.systems.onebyte.header import Header, schedule_of
from farflung.systems.onebyte.journal import JournalWriter, read_journal
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.objective import Batch, NextTokenLoss
from farflung.systems.onebyte.records import Part, Participant
from farflung.systems.onebyte.replay import replay
from farflung.systems.onebyte.steps import step_of
from tests.onebyte_journals import SEQUENCER, header_for, identity_of, tiny_model

NUM_SLOTS = 16


def tuning_header(model: LlamaForCausalLM) -> Header:
    schedule = schedule_of(0.02, num_slots=NUM_SLOTS, exponent=24)
    return header_for(model, num_slots=NUM_SLOTS, epsilon=2e-3, exponent=24, schedule=schedule)


def data_of(round_number: int) -> Batch:
    """Sequences that count up by threes: something that a model can learn."""
    starts = torch.randint(0, 97, (8, 1), generator=torch.Generator().manual_seed(round_number))
    return {"input_ids": (starts + 3 * torch.arange(10)) % 97}


def tune(header: Header, learners: list[ModelLearner], num_rounds: int) -> bytes:
    """A run: each round's slots are shared out evenly, and all move alike; the journal's bytes."""
    file = BytesIO()
    writer = JournalWriter(file, header)
    writer.add(Participant(identity_of(0).public_key, "all of them"))
    share = NUM_SLOTS // len(learners)
    for number in range(num_rounds):
        codes = [learner.measure(number, share * place, share) for place, learner in enumerate(learners)]
        record = writer.add_round([Part(0, number, 0, b"".join(codes))])
        for learner in learners:
            learner.add([step_of(header, record, part) for part in record.parts])
    writer.seal(0, identity_of(0))
    writer.close(SEQUENCER)
    return file.getvalue()


@pytest.mark.parametrize("is_exact", [False, True])
def test_the_loss_falls_and_replay_gives_the_same_weights(is_exact: bool, tmp_path: Path) -> None:
    model = tiny_model()
    header = tuning_header(model)
    learner = ModelLearner(
        header, model, NextTokenLoss(), data_of, num_directions=16, is_exact=is_exact, folder=tmp_path
    )
    with torch.no_grad():
        before = float(NextTokenLoss()(model, data_of(1000)).mean())
    content = tune(header, [learner], 60)
    learner.refresh()
    with torch.no_grad():
        after = float(NextTokenLoss()(model, data_of(1000)).mean())
    assert after < before - 0.15
    replayed = tiny_model()
    sections = read_journal(BytesIO(content), name="tuned.flj")
    replay(sections, dict(replayed.named_parameters()))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(replayed.named_parameters())[name]), name
    assert sections[0].ledger.num_entries == 60 * NUM_SLOTS


def test_one_two_and_four_machines_write_the_same_journal() -> None:
    journals: list[bytes] = []
    digests: list[set[bytes]] = []
    for num_machines in (1, 2, 4):
        models = [tiny_model() for _ in range(num_machines)]
        header = tuning_header(models[0])
        learners = [ModelLearner(header, model, NextTokenLoss(), data_of, num_directions=4) for model in models]
        journals.append(tune(header, learners, 6))
        digests.append({learner.digest() for learner in learners})
    assert journals[0] == journals[1] == journals[2]
    assert digests[0] == digests[1] == digests[2] and len(digests[0]) == 1


def test_steps_that_are_taken_back_leave_the_base() -> None:
    model = tiny_model()
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    header = tuning_header(model)
    learner = ModelLearner(header, model, NextTokenLoss(), data_of)
    untouched = learner.digest()
    writer = JournalWriter(BytesIO(), header)
    writer.add(Participant(identity_of(0).public_key, ""))
    record = writer.add_round([Part(0, 0, 0, learner.measure(0, 0, NUM_SLOTS))])
    learner.add([step_of(header, record, part) for part in record.parts])
    learner.refresh()
    assert learner.digest() != untouched
    assert all(not torch.equal(parameter, base[name]) for name, parameter in model.named_parameters())
    learner.add([step_of(header, record, part, sign=-1) for part in record.parts])
    learner.refresh()
    assert learner.digest() == untouched
    assert all(torch.equal(parameter, base[name]) for name, parameter in model.named_parameters())
