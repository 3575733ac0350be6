"""The bits, directions and bytes of one-byte tuning are what they were, on every machine and in every release."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from farflung.systems.onebyte.code import coefficients, decode_projections, encode_projections, median_code
from farflung.systems.onebyte.directions import draw_directions, draw_in_pieces
from farflung.systems.onebyte.header import TensorShape
from farflung.systems.onebyte.normal import normal_quantiles
from farflung.systems.onebyte.philox import philox4x32
from farflung.systems.onebyte.randomness import GENERATORS, signs_by_torch, signs_of, slot_bytes, stream_key
from tests.onebyte_journals import bare_header

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


def test_signs_are_the_same_by_whatever_device_makes_them() -> None:
    bits = slot_bytes("philox4x64", stream_key(bytes(16), 0, "weight"), 0, 5, 9)
    for count in (1, 7, 8, 70, 72):
        assert torch.equal(signs_of(bits, count), signs_by_torch(bits, count))


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
