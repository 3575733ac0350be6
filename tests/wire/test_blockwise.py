"""Blockwise codecs keep their bounds in every block, whatever the length, size and type of the values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farflung.wire.blockwise import BLOCK_LENGTH
from farflung.wire.levels import BLOCK_CODECS, _rotation
from farflung.wire.tensor import WireTensor, decode_tensor, encode_tensor

torch.set_num_threads(1)
NAMES = list(BLOCK_CODECS)
EVEN = ["int8", "int4", "int2"]
LOGARITHMIC = {"log8": (506, 1.05), "log4": (27, 2.4)}
FLOOR = 1e-36
HALF = {torch.float32: 2**-22, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def coded(tensor: torch.Tensor, codec: str) -> torch.Tensor:
    wire = encode_tensor(tensor, codec)
    return decode_tensor(WireTensor(wire.dtype, wire.shape, codec, memoryview(bytes(wire.data))))


def values(length: int, seed: int, kind: str) -> torch.Tensor:
    """Double-precision values: well spread, with outliers, mostly zero, or of one sign."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(length, generator=generator, dtype=torch.float64)
    match kind:
        case "outliers":
            return spread**5
        case "sparse":
            return spread * (torch.rand(length, generator=generator) < 0.05)
        case "positive":
            return spread.square()
        case _:
            return spread


def bounds(codec: str, block: torch.Tensor) -> torch.Tensor:
    """What `wire.levels` allows as the error of each value."""
    maximum = block.abs().max()
    if codec == "int8":
        return (maximum / 254).expand_as(block)
    extreme = block[block.abs().argmax()]
    is_opposite = block * -extreme.sign() > maximum * 14 / 15
    return torch.where(is_opposite, maximum / 7.7, maximum / 15)


@pytest.mark.parametrize("codec", EVEN)
@pytest.mark.parametrize("kind", ["spread", "outliers", "sparse", "positive"])
@given(length=st.integers(0, 300), seed=st.integers(0, 1000), scale=st.sampled_from([1e-30, 1e-7, 1.0, 1e30]))
@settings(max_examples=12)
def test_the_bound_holds_in_every_block(codec: str, kind: str, length: int, seed: int, scale: float) -> None:
    tensor = (values(length, seed, kind) * scale).float()
    back = coded(tensor, codec)
    for block, error in zip(
        tensor.double().split(BLOCK_LENGTH), (back - tensor).double().split(BLOCK_LENGTH), strict=True
    ):
        if codec == "int2":
            assert error.norm() <= block.norm() * 0.96 + FLOOR
        elif len(block):
            assert bool((error.abs() <= bounds(codec, block) * (1 + 1e-4) + FLOOR).all())


@pytest.mark.parametrize("codec", LOGARITHMIC)
@pytest.mark.parametrize("kind", ["positive", "sparse", "wide"])
@given(length=st.integers(1, 300), seed=st.integers(0, 1000), scale=st.sampled_from([1e-30, 1e-12, 1.0, 1e30]))
@settings(max_examples=12)
def test_logarithmic_codecs_keep_every_value_in_proportion(
    codec: str, kind: str, length: int, seed: int, scale: float
) -> None:
    exponents = values(length, seed, "spread") * 3
    tensor = (2**exponents if kind == "wide" else values(length, seed, kind).square()).mul(scale).float()
    back = coded(tensor, codec)
    assert torch.equal(back == 0, tensor == 0)
    for block, decoded in zip(tensor.double().split(BLOCK_LENGTH), back.double().split(BLOCK_LENGTH), strict=True):
        present = block > 0
        if not present.any():
            continue
        floor = max(float(block.max()) * 2**-32, 2**-126)
        floored = block[present].clamp_min(floor)
        reach = float((floored.max() / floored.min()).log2()) + 1 / 8
        levels, factor_max = LOGARITHMIC[codec]
        factors = (decoded[present] / floored).log2().abs()
        allowed = min(reach / levels, math.log2(factor_max)) + 1e-3
        assert bool((factors <= torch.where(block[present] < floor * 1.1, allowed + 1 / 8, allowed)).all())


def test_second_moments_rounded_evenly_lose_what_logarithms_keep() -> None:
    """Why there are logarithmic codecs: a small second moment beside a large one must not become zero."""
    moments = torch.full((64,), 1e-10)
    moments[7] = 1e-2
    assert int((coded(moments.sqrt(), "int8") == 0).sum()) == 63
    assert float((coded(moments, "log8") / moments - 1).abs().max()) < 0.05
    assert float((coded(moments, "log4") / moments).log2().abs().max()) < 1.0


@pytest.mark.parametrize("codec", LOGARITHMIC)
def test_logarithmic_codecs_refuse_negative_values(codec: str) -> None:
    tensor = torch.ones(100)
    tensor[99] = -1e-30
    with pytest.raises(ValueError, match="negative"):
        encode_tensor(tensor, codec)


@pytest.mark.parametrize("codec", ["int4", "int2"])
def test_the_worst_block_comes_close_to_the_bound(codec: str) -> None:
    """The bounds are not idle: one non-zero value (int2), or two ends of equal size (int4), nearly meet them."""
    # int2 rotates whole blocks; one that lacks a value is left as it is.
    block = torch.zeros(BLOCK_LENGTH - 1)
    block[5] = 3.0
    if codec == "int2":
        assert float((coded(block, codec) - block).norm() / block.norm()) > 0.95
        return
    block[9] = -3.0
    assert float((coded(block, codec) - block).abs().max()) > 3.0 / 8.1


@pytest.mark.parametrize(("codec", "expected"), [("int8", 0.006), ("int4", 0.095), ("int2", 0.34)])
def test_the_error_of_normal_values_is_there_and_as_stated(codec: str, expected: float) -> None:
    tensor = values(1 << 16, 0, "spread").float()
    assert float((coded(tensor, codec) - tensor).norm() / tensor.norm()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", ["outliers", "sparse", "positive", "constant", "one value"])
def test_two_bits_bear_outliers_in_whole_blocks(kind: str) -> None:
    """Rotation makes of them what normal values are; each of these has an error of .5 to .95 without."""
    tensor = values(1 << 14, 2, kind).float()
    if kind == "constant":
        tensor = torch.ones(1 << 14)
    elif kind == "one value":
        tensor = torch.zeros(1 << 14)
        tensor[::64] = 3.0
    assert float((coded(tensor, "int2") - tensor).norm() / tensor.norm()) <= (0.5 if kind == "one value" else 0.4)


@pytest.mark.parametrize("length", [64, 1 << 10, (1 << 10) + 13])
def test_two_bits_decode_to_the_same_bits_in_any_order_of_summation(length: int) -> None:
    """Every sum of the rotation is exact, so double precision gives the same numbers."""
    wire = encode_tensor(values(length, 4, "outliers").float(), "int2")
    data = torch.frombuffer(bytearray(wire.data), dtype=torch.uint8)
    num_blocks = -(-length // 64)
    scales = data[: 2 * num_blocks].view(torch.bfloat16).double()
    packed = data[2 * num_blocks :]
    levels = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], dim=1).reshape(-1)[:length].double() - 1.5
    whole = length // 64
    matrix = _rotation().T.double()
    expected = torch.cat(((levels[: whole * 64].view(-1, 64) @ matrix).reshape(-1), levels[whole * 64 :]))
    expected *= scales.repeat_interleave(64)[:length]
    assert torch.equal(decode_tensor(wire), expected.float())


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("dtype", list(HALF), ids=str)
def test_every_floating_point_type_keeps_its_range(codec: str, dtype: torch.dtype) -> None:
    limit = torch.finfo(dtype).max
    ends = torch.tensor([limit, 0.0 if codec in LOGARITHMIC else -limit, 0.0, limit / 3], dtype=dtype)
    for tensor in (torch.full((70,), limit, dtype=dtype), ends):
        back = coded(tensor, codec)
        assert back.dtype == dtype and bool(back.isfinite().all())
    tensor = values(200, 3, "positive").to(dtype)
    error = (coded(tensor, codec).double() - tensor.double()).norm() / tensor.double().norm()
    assert float(error) < {"int8": 0.01, "int4": 0.15, "int2": 0.6, "log8": 0.02, "log4": 0.35}[codec] + HALF[dtype]


@pytest.mark.parametrize("codec", NAMES)
def test_zeros_are_exact_and_tiny_values_finite(codec: str) -> None:
    assert torch.equal(coded(torch.zeros(100), codec), torch.zeros(100))
    for size in (1e-45, 1e-38, 1e-37):
        assert float((coded(torch.full((100,), size), codec) - size).abs().max()) <= FLOOR


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 63, 64, 129])
def test_values_that_are_not_finite_are_refused(codec: str, bad: float, position: int) -> None:
    tensor = torch.ones(130)
    tensor[position] = bad
    with pytest.raises(ValueError, match=r"infinite values or NaN|negative"):
        encode_tensor(tensor, codec)


@pytest.mark.parametrize("codec", NAMES)
def test_blocks_beyond_the_first_chunk_are_coded_as_if_alone(codec: str) -> None:
    tensor = values((1 << 18) * 2 + 64 * 3 + 7, 1, "positive").float()
    whole = coded(tensor, codec)
    for first in (0, (1 << 18) - 64, 1 << 18, 1 << 19, (1 << 19) + 128):
        assert torch.equal(whole[first : first + 128], coded(tensor[first : first + 128], codec))


@pytest.mark.parametrize("codec", EVEN)
def test_the_codes_are_where_they_are_stated_to_be(codec: str) -> None:
    """The layout is the wire's: scales first, then codes from the low bits up."""
    data = bytes(encode_tensor(torch.tensor([-8.0, 0.0, 4.0, 7.0, 1.0]), codec).data)
    rms = torch.tensor(26.0).sqrt().to(torch.bfloat16)  # of 64 + 16 + 49 + 1 over 5
    golden = {
        "int8": torch.tensor([8 / 127]).numpy().tobytes() + bytes([1, 128, 192, 239, 144]),
        "int4": torch.tensor([1.0]).to(torch.bfloat16).view(torch.uint8).numpy().tobytes() + bytes([0x80, 0xFC, 0x89]),
        "int2": rms.view(1).view(torch.uint8).numpy().tobytes() + bytes([0b11_10_10_00, 0b10_10_10_10]),
    }
    assert data == golden[codec]
    assert math.isclose(float(rms), math.sqrt(26), rel_tol=2**-8)


def test_logarithms_are_where_they_are_stated_to_be() -> None:
    data = bytes(encode_tensor(torch.tensor([4.0, 0.0, 2.0**15, 8.0]), "log4").data)
    scales = torch.tensor([2.0, 13 / 14 * (1 + 2**-10)]).half().view(torch.uint8).numpy().tobytes()
    assert data == scales + bytes([0x01, 0x2F])


@pytest.mark.parametrize("codec", NAMES)
@given(data=st.binary(min_size=0, max_size=200), length=st.integers(0, 400))
def test_any_bytes_of_the_right_number_decode(codec: str, data: bytes, length: int) -> None:
    num_bytes = BLOCK_CODECS[codec].num_bytes(length)
    data = (data * (num_bytes // max(len(data), 1) + 1))[:num_bytes].ljust(num_bytes, b"\xff")
    assert decode_tensor(WireTensor("float16", (length,), codec, memoryview(data))).shape == (length,)
