"""What one byte per gradient promises, as equalities: order-free sums, one hash, exact removal, no bias."""

import hashlib
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from farflung.systems.onebyte.accumulator import Accumulators, tuned_weights
from farflung.systems.onebyte.code import coefficients, decode_projections, encode_projections, median_code
from farflung.systems.onebyte.directions import draw_directions, draw_in_pieces
from farflung.systems.onebyte.header import Header, Schedule, TensorShape, schedule_of
from farflung.systems.onebyte.measure import Measurer
from farflung.systems.onebyte.normal import normal_quantiles
from farflung.systems.onebyte.objective import NextTokenLoss
from farflung.systems.onebyte.philox import philox4x32
from farflung.systems.onebyte.randomness import GENERATORS, signs_of, slot_bytes, stream_key
from farflung.systems.onebyte.replay import replay, steps_of
from farflung.systems.onebyte.steps import Step, step_of
from tests.onebyte_journals import bare_header, header_for, invented_codes, invented_journal, tiny_model

MATRIX, VECTOR, CUBE = TensorShape("matrix", (40, 24)), TensorShape("vector", (24,)), TensorShape("cube", (3, 8, 5))
DIRECTIONS = ("rank1", "rademacher", "gaussian")


# Random bits


def test_philox4x32_gives_the_known_answers_of_random123() -> None:
    ones = 0xFFFFFFFF
    digits = ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], (0xA4093822, 0x299F31D0))
    cases = [([0] * 4, (0, 0)), ([ones] * 4, (ones, ones)), digits]
    expected = [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ]
    for (counter, key), words in zip(cases, expected, strict=True):
        assert philox4x32(torch.tensor(counter, dtype=torch.int64), key).tolist() == words


def test_numpy_philox_gives_the_known_answers_of_random123() -> None:
    first = np.random.Philox(key=np.zeros(2, dtype=np.uint64), counter=np.array([2**64 - 1] * 4, dtype=np.uint64))
    assert [int(word) for word in first.random_raw(4)] == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ], "the counter is raised before it is used, so this is the answer for counter 0 and key 0"


KNOWN_BYTES = {
    "philox4x64": "12ed64ee0454433330a812981ea2c280",
    "philox4x32": "df29d97e15433670ed981d407366fa3f",
}


@pytest.mark.parametrize("generator", GENERATORS)
def test_bits_of_slots_are_frozen(generator: str) -> None:
    key = stream_key(bytes(range(16)), 7, "model.layers.0.self_attn.q_proj.weight")
    assert key.hex() == "f6dceb11014c4d39fb7265d90f53ce82"
    assert bytes(slot_bytes(generator, key, 5, 1, 16)[0].tolist()).hex() == KNOWN_BYTES[generator]


@pytest.mark.parametrize("generator", GENERATORS)
@given(first=some.integers(0, 50), count=some.integers(1, 20), num_bytes=some.integers(1, 100))
def test_a_slot_has_the_same_bits_however_many_are_drawn(
    generator: str, first: int, count: int, num_bytes: int
) -> None:
    key = stream_key(bytes(16), 3, "weight")
    together = slot_bytes(generator, key, first, count, num_bytes)
    alone = [slot_bytes(generator, key, slot, 1, num_bytes)[0] for slot in range(first, first + count)]
    assert torch.equal(together, torch.stack(alone))


def test_slots_rounds_runs_and_tensors_have_bits_of_their_own() -> None:
    keys = {stream_key(bytes([run] * 16), number, name) for run in (0, 1) for number in (0, 1) for name in ("a", "b")}
    assert len(keys) == 8
    rows = slot_bytes("philox4x64", keys.pop(), 0, 100, 32)
    assert len({bytes(row.tolist()) for row in rows}) == 100


@pytest.mark.parametrize("generator", GENERATORS)
def test_signs_are_balanced_and_unrelated(generator: str) -> None:
    bits = slot_bytes(generator, stream_key(bytes(16), 0, "weight"), 0, 400, 125)
    signs = signs_of(bits, 1000).double()
    assert {*signs.unique().tolist()} == {-1.0, 1.0}
    products = signs @ signs.t() / 1000
    products.fill_diagonal_(0)
    assert signs.mean().abs() < 0.01 and products.abs().max() < 0.18  # 5.7 standard deviations


def test_normals_are_normal() -> None:
    table = normal_quantiles().double() / 256
    assert abs(table.mean()) < 1e-9 and abs(table.square().mean() - 1) < 1e-3
    assert abs(table.pow(4).mean() - 3) < 0.01


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("tensor", [MATRIX, VECTOR, CUBE])
def test_directions_are_frozen_and_unit_scaled(direction: str, tensor: TensorShape) -> None:
    header = bare_header(tensor, direction=direction)
    drawn = draw_directions(header, tensor, 2, 0, 300).entries(tensor.shape)
    assert drawn.shape == (300, *tensor.shape)
    assert abs(drawn.square().mean() - 1) < 0.02 and abs(drawn.mean()) < 0.02
    pieces = [each.entries(tensor.shape) for _, each in draw_in_pieces(header, tensor, 2, range(300), 700)]
    assert len(pieces) > 1 and torch.equal(torch.cat(pieces), drawn)


def test_direction_hashes_are_frozen() -> None:
    found = {}
    for direction in DIRECTIONS:
        header = bare_header(MATRIX, direction=direction)
        drawn = draw_directions(header, MATRIX, 1, 2, 3).entries(MATRIX.shape)
        found[direction] = hashlib.sha256((drawn * 256).to(torch.int32).numpy().tobytes()).hexdigest()[:16]
    assert found == {"rank1": "f2ab03efc573ad5d", "rademacher": "7842de91ebff3e0d", "gaussian": "4383c6d230645c77"}


# The byte


@given(some.floats(2.0**-11.9, 2.0**3.8), some.booleans())
def test_a_byte_is_within_a_sixteenth_octave(magnitude: float, is_negative: bool) -> None:
    value = -magnitude if is_negative else magnitude
    (found,) = decode_projections(encode_projections([value], -12), -12)
    assert abs(np.log2(found / value)) <= 1 / 16 + 1e-9


def test_what_is_too_small_or_too_large_stays_within_the_byte() -> None:
    assert encode_projections([0.0, 1e-9, -1e9, float("inf"), float("-inf")], -12) == bytes([0, 0, 255, 127, 255])
    with pytest.raises(ValueError, match="not a number"):
        encode_projections([float("nan")], -12)


def test_coefficients_are_frozen_and_odd() -> None:
    codes = bytes([0, 1, 52, 56, 60, 61, 64, 68, 76, 127])
    worth = [0, 0, 16, 23, 32, 35, 45, 64, 127, 127]
    assert coefficients(codes, 60).tolist() == worth
    assert coefficients(bytes(code | 128 for code in codes), 60).tolist() == [-value for value in worth]
    assert coefficients(codes, 60, coefficient_max=32).tolist() == [min(value, 32) for value in worth]


def test_coefficients_follow_the_reference_alone() -> None:
    for reference in range(1, 120):
        assert coefficients(bytes([reference]), reference).tolist() == [32]
        exact = 32 * 2.0 ** ((np.arange(1, 128) - reference) / 8)
        found = coefficients(bytes(range(1, 128)), reference)
        assert np.abs(found - np.minimum(np.floor(exact + 0.5), 127)).max() == 0


def test_half_the_entries_must_lie_before_the_reference_does() -> None:
    honest = bytes([50] * 51)
    assert median_code(honest + bytes([127] * 49)) == 50
    assert median_code(bytes([0, 128])) is None


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
    found = tuned_weights(base, [sums], 24)
    assert found.dtype == dtype
    for weight, total, got in zip(base.tolist(), sums.tolist(), found.tolist(), strict=True):
        exact = Fraction(weight) - Fraction(total, 1 << 24)
        assert torch.tensor(float(exact), dtype=torch.float64).to(dtype).item() == got


# Replicas


def test_a_joiner_replays_to_the_hash_of_those_who_were_there() -> None:
    model = tiny_model()
    header = header_for(model)
    journal = invented_journal(header, num_rounds=8)
    live = Accumulators(header)
    for record in journal.section.rounds:  # as it went
        live.add([step_of(header, record, part) for part in record.parts])
    for joined_at in (0, 3, 8):  # those rounds at once and shuffled, the others as they come
        joiner = Accumulators(header)
        past = [step_of(header, record, part) for record in journal.section.rounds[:joined_at] for part in record.parts]
        random.Random(joined_at).shuffle(past)
        joiner.add(past)
        for record in journal.section.rounds[joined_at:]:
            joiner.add([step_of(header, record, part) for part in record.parts])
        assert joiner.digest() == live.digest()
    base = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    assert replay([journal.section], dict(model.named_parameters())) != bytes(32)
    for name, tensor in model.named_parameters():
        expected = tuned_weights(base[name], [live.sums[name]], header.update_exponent)
        assert torch.equal(tensor.detach(), expected) and not torch.equal(expected, base[name])


def test_removing_a_participant_equals_replay_without_it() -> None:
    header = header_for(tiny_model())
    section = invented_journal(header).section
    subtracted = Accumulators(header)
    subtracted.add(steps_of(section))
    theirs = [(record, part) for record in section.rounds for part in record.parts if part.participant == 1]
    subtracted.add([step_of(header, record, part, sign=-1) for record, part in theirs])
    without = Accumulators(header)
    without.add(
        [step_of(header, record, part) for record in section.rounds for part in record.parts if part.participant != 1]
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
