"""What one byte per gradient promises, as equalities: order-free sums, one hash, exact removal, no bias."""

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from farflung.systems.onebyte import accumulator
from farflung.systems.onebyte.accumulator import Accumulators, write_tuned
from farflung.systems.onebyte.code import coefficients, encode_projections
from farflung.systems.onebyte.directions import draw_directions
from farflung.systems.onebyte.header import Header, Schedule, TensorShape, schedule_of
from farflung.systems.onebyte.journal import JournalSection
from farflung.systems.onebyte.measure import Measurer
from farflung.systems.onebyte.objective import NextTokenLoss
from farflung.systems.onebyte.randomness import GENERATORS
from farflung.systems.onebyte.records import Round
from farflung.systems.onebyte.replay import replay, steps_of
from farflung.systems.onebyte.steps import Step, step_of
from tests.onebyte_journals import bare_header, header_for, invented_codes, invented_journal, tiny_model

MATRIX, VECTOR, CUBE = TensorShape("matrix", (40, 24)), TensorShape("vector", (24,)), TensorShape("cube", (3, 8, 5))
DIRECTIONS = ("rank1", "rademacher", "gaussian")


# Sums


def plain_sum(header: Header, tensor: TensorShape, steps: list[Step]) -> torch.Tensor:
    """The same sum in 64-bit integers, entry by entry."""
    total = torch.zeros(tensor.shape, dtype=torch.int64)
    unit = 256 if header.direction == "gaussian" else 1
    for step in steps:
        for slot, weight in zip(step.slots, step.weights.tolist(), strict=True):
            drawn = draw_directions(header, tensor, step.base_round, slot, 1).entries(tensor.shape)[0]
            total += weight * (drawn * unit).to(torch.int64)
    return total


def invented_steps(header: Header, num_rounds: int = 4) -> list[Step]:
    return [
        Step(number, 0, coefficients(invented_codes(number, header.num_slots), 60).astype(np.int64) * 60)
        for number in range(num_rounds)
    ]


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sums_are_exact(direction: str, generator: str) -> None:
    header = bare_header(MATRIX, VECTOR, CUBE, direction=direction, generator=generator)
    steps = invented_steps(header)
    accumulators = Accumulators(header)
    accumulators.add(steps)
    for tensor in header.tensors:
        assert torch.equal(accumulators.sums[tensor.name].long(), plain_sum(header, tensor, steps))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sums_do_not_depend_on_how_work_is_cut(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    header = bare_header(MATRIX, VECTOR, CUBE, direction=direction)
    whole = Accumulators(header)
    whole.add(invented_steps(header))
    monkeypatch.setattr(accumulator, "PRODUCT_ELEMENTS_MAX", 70)
    monkeypatch.setattr(accumulator, "DIRECTION_ELEMENTS_MAX", 200)
    monkeypatch.setattr(accumulator, "EXACT_MAX", {torch.float32: 1 << 14, torch.float64: 1 << 24})
    monkeypatch.setattr(accumulator, "BATCH_MOVEMENT_MAX", 1 << 18)
    cut = Accumulators(header)
    cut.add(invented_steps(header))
    assert cut.digest() == whole.digest()


def test_large_rates_are_exact_along_gaussian_directions() -> None:
    header = bare_header(MATRIX, direction="gaussian", exponent=10, num_slots=8)
    steps = [Step(0, 0, np.array([127 * 3000, -127 * 2999, 5, 127 * 1000], dtype=np.int64))]
    accumulators = Accumulators(header)
    accumulators.add(steps)
    assert torch.equal(accumulators.sums["matrix"].long(), plain_sum(header, MATRIX, steps))


def test_sums_beyond_what_float32_holds_are_exact() -> None:
    header = bare_header(MATRIX, num_slots=64)
    weights = np.full(64, 127 * 65535, dtype=np.int64)
    steps = [Step(0, 0, weights), Step(1, 0, -weights + 1)]
    accumulators = Accumulators(header)
    accumulators.add(steps)
    found = accumulators.sums["matrix"]
    assert found.abs().max() > 1 << 25, "more than float32 counts"
    assert torch.equal(found.long(), plain_sum(header, MATRIX, steps))


@given(seed=some.integers(0, 10_000))
def test_any_order_and_batching_gives_one_hash(seed: int) -> None:
    header = bare_header(MATRIX, VECTOR)
    entries = [
        Step(step.base_round, step.first_slot + place, step.weights[place : place + 1])
        for step in invented_steps(header)
        for place in range(len(step.weights))
    ]
    expected = Accumulators(header)
    expected.add(invented_steps(header))
    chance = random.Random(seed)
    chance.shuffle(entries)
    found = Accumulators(header)
    while entries:
        size = chance.randint(1, len(entries))
        found.add(entries[:size])
        entries = entries[size:]
    assert found.digest() == expected.digest()


def test_a_weight_that_would_overflow_is_refused_and_sums_that_came_back_are_not() -> None:
    header = bare_header(VECTOR)
    forth, back = (np.full(12, sign * 127 * 65535, dtype=np.int64) for sign in (1, -1))
    accumulators = Accumulators(header)
    for number in range(60):  # far more movement than 32 bits count, but never far from 0
        accumulators.add([Step(number, 0, forth)])
        accumulators.add([Step(number, 0, back)])
    assert not accumulators.sums["vector"].any()
    with pytest.raises(ValueError, match="move further"):
        for _ in range(400):
            accumulators.add([Step(0, 0, forth)])


def test_sums_are_refused_where_products_may_be_rounded() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ValueError, match="set_float32_matmul_precision"):
            Accumulators(bare_header(MATRIX)).add([])
    finally:
        torch.set_float32_matmul_precision(before)


def test_sums_may_lie_in_files(tmp_path: Path) -> None:
    header = bare_header(MATRIX, VECTOR)
    kept, earlier = Accumulators(header), Accumulators(header, folder=tmp_path)
    earlier.add(invented_steps(header))
    mapped = Accumulators(header, folder=tmp_path)
    assert not any(sums.any() for sums in mapped.sums.values()), "another life begins with nothing"
    for each in (kept, mapped):
        each.add(invented_steps(header))
    assert mapped.digest() == kept.digest() == earlier.digest()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 4 * (MATRIX.num_elements + VECTOR.num_elements)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_rounded_once(dtype: torch.dtype) -> None:
    base = torch.randn(500, generator=torch.Generator().manual_seed(0)).mul(0.05).to(dtype)
    sums = torch.randint(-(1 << 30), 1 << 30, (500,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    found = torch.empty_like(base)
    write_tuned(found, base, [sums], 24)
    for weight, total, got in zip(base.tolist(), sums.tolist(), found.tolist(), strict=True):
        exact = Fraction(weight) - Fraction(total, 1 << 24)
        assert torch.tensor(float(exact), dtype=torch.float64).to(dtype).item() == got


# Replicas


def rounds_of(section: JournalSection) -> list[Round]:
    """Its rounds, none of which is of masked sums here."""
    return [record for record in section.rounds if isinstance(record, Round)]


def test_a_joiner_replays_to_the_hash_of_those_who_were_there() -> None:
    model = tiny_model()
    header = header_for(model)
    journal = invented_journal(header, num_rounds=8)
    live = Accumulators(header)
    rounds = rounds_of(journal.section)
    for record in rounds:  # as it went
        live.add([step_of(header, record, part) for part in record.parts])
    for joined_at in (0, 3, 8):  # those rounds at once and shuffled, the others as they come
        joiner = Accumulators(header)
        past = [step_of(header, record, part) for record in rounds[:joined_at] for part in record.parts]
        random.Random(joined_at).shuffle(past)
        joiner.add(past)
        for record in rounds[joined_at:]:
            joiner.add([step_of(header, record, part) for part in record.parts])
        assert joiner.digest() == live.digest()
    base = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    assert replay([journal.section], dict(model.named_parameters())) != bytes(32)
    for name, tensor in model.named_parameters():
        expected = base[name].clone()
        write_tuned(expected, expected, [live.sums[name]], header.update_exponent)
        assert torch.equal(tensor.detach(), expected) and not torch.equal(expected, base[name])


def test_removing_a_participant_equals_replay_without_it() -> None:
    header = header_for(tiny_model())
    section = invented_journal(header).section
    subtracted = Accumulators(header)
    subtracted.add(steps_of(section))
    theirs = [(record, part) for record in rounds_of(section) for part in record.parts if part.participant == 1]
    subtracted.add([step_of(header, record, part, sign=-1) for record, part in theirs])
    without = Accumulators(header)
    without.add(
        [
            step_of(header, record, part)
            for record in rounds_of(section)
            for part in record.parts
            if part.participant != 1
        ]
    )
    assert subtracted.digest() == without.digest()


def test_a_linear_schedule_ends_at_nothing() -> None:
    schedule = Schedule(kind="linear", rate=100, num_rounds=10)
    assert [schedule.rate_of(number) for number in (0, 5, 9, 10, 11)] == [100, 50, 10, 0, 0]


def test_a_rate_is_told_in_integers_or_refused() -> None:
    assert schedule_of(0.04, num_slots=64, exponent=24).rate == round(0.04 / (32 * 64) * 2**24)
    with pytest.raises(ValueError, match="choose 20 to 31"):
        schedule_of(0.04, num_slots=64, exponent=10)


# Measurements


def test_measurements_are_unbiased() -> None:
    """The mean of projection * direction over many slots is the gradient."""
    model = tiny_model()
    header = header_for(
        model, ["*.layers.0.self_attn.q_proj.weight", "*.layers.1.input_layernorm.weight"], epsilon=2e-3
    )
    tokens = torch.randint(0, 97, (4, 12), generator=torch.Generator().manual_seed(2))
    measurer = Measurer(header, model, NextTokenLoss(), num_directions=64)
    batch = {"input_ids": tokens}
    num_slots = 4096
    projections = torch.tensor(measurer.measure(batch, 0, range(num_slots)))
    exact = torch.tensor(measurer.project_gradient(batch, 0, range(num_slots)))
    torch.testing.assert_close(projections, exact, rtol=2e-2, atol=3e-3)
    parameters = dict(model.named_parameters())
    names = [tensor.name for tensor in header.tensors]
    gradients = torch.autograd.grad(
        NextTokenLoss()(model, batch).mean(), [parameters[name].requires_grad_(True) for name in names]
    )
    squared = sum(float(gradient.square().sum()) for gradient in gradients)
    for tensor, gradient in zip(header.tensors, gradients, strict=True):
        drawn = draw_directions(header, tensor, 0, 0, num_slots).entries(tensor.shape)
        estimate = (projections.view(-1, *[1] * len(tensor.shape)) * drawn).mean(0)
        # Each element has the variance |gradient|^2 / slots; the sum of squares of the errors follows from it.
        error = float((estimate - gradient).square().sum())
        assert error < 1.5 * tensor.num_elements * squared / num_slots
        cosine = torch.nn.functional.cosine_similarity(estimate.flatten(), gradient.flatten(), dim=0)
        assert cosine > (0.85 if tensor.num_elements > 100 else 0.5)


def test_the_same_slots_give_the_same_bytes_however_they_are_shared_out() -> None:
    model = tiny_model()
    header = header_for(model)
    batch = {"input_ids": torch.randint(0, 97, (2, 10), generator=torch.Generator().manual_seed(3))}
    measurer = Measurer(header, model, NextTokenLoss(), num_directions=4)
    whole = encode_projections(measurer.measure(batch, 1, range(12)), -12)
    parts = [encode_projections(measurer.measure(batch, 1, range(first, first + 4)), -12) for first in (0, 4, 8)]
    assert whole == b"".join(parts)
