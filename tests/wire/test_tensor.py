"""Tensors on the wire: exact or within the stated bound, and no header is believed."""

import math

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farflung.wire.tensor import (
    CODECS,
    DTYPES,
    MalformedTensor,
    WireTensor,
    decode_tensor,
    encode_tensor,
    num_encoded_bytes,
)

torch.set_num_threads(1)
FLOATING = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)


def over_the_wire(tensor: torch.Tensor, codec: str = "raw") -> torch.Tensor:
    return decode_tensor(msgspec.msgpack.decode(msgspec.msgpack.encode(encode_tensor(tensor, codec)), type=WireTensor))


def make(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=str)
@given(shape=SHAPES, seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_raw_is_exact_for_every_dtype(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> None:
    tensor = (make(shape, seed, 50).abs() if dtype == torch.uint8 else make(shape, seed, 50)).to(dtype)
    back = over_the_wire(tensor)
    assert back.dtype == dtype and back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_raw_keeps_nan_and_infinity_and_layouts_do_not_matter() -> None:
    tensor = torch.tensor([[float("nan"), float("inf")], [-0.0, 1e-40]])
    assert torch.equal(over_the_wire(tensor).view(torch.int32), tensor.view(torch.int32))
    wide = make((6, 8), 1).float()
    for view in (wide.T, wide[::2, 1::3], wide[:, 2], wide.expand(3, 6, 8), wide.requires_grad_()):
        assert torch.equal(over_the_wire(view), view)


def test_a_decoded_tensor_has_memory_of_its_own() -> None:
    frame = bytearray(msgspec.msgpack.encode(encode_tensor(torch.ones(4))))
    tensor = decode_tensor(msgspec.msgpack.decode(frame, type=WireTensor))
    frame[-1] ^= 255
    tensor += 1
    assert torch.equal(tensor, torch.full((4,), 2.0))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@given(shape=SHAPES, seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 1.0, 300.0]))
@settings(max_examples=30)
def test_half_codecs_keep_their_bounds(dtype: torch.dtype, shape: tuple[int, ...], seed: int, scale: float) -> None:
    tensor = make(shape, seed, scale).to(dtype)
    exact = tensor.double()
    for codec, relative, absolute in (("fp16", 2**-11, 2**-25), ("bf16", 2**-8, 0.0)):
        error = (over_the_wire(tensor, codec).double() - exact).abs()
        # Decoding to a 16-bit dtype rounds once more.
        own = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 0.0}[dtype]
        assert bool((error <= exact.abs() * (relative + own) * (1 + 1e-9) + absolute * 2).all())


def test_codecs_take_the_bytes_that_they_state() -> None:
    tensor = torch.zeros(10, 64)
    sizes = {codec: len(encode_tensor(tensor, codec).data) for codec in CODECS}
    blocks = {
        "int8": 640 + 4 * 10,
        "int4": 320 + 2 * 10,
        "int2": 160 + 2 * 10,
        "log8": 640 + 4 * 10,
        "log4": 320 + 4 * 10,
    }
    assert sizes == {"raw": 2560, "fp16": 1280, "bf16": 1280, **blocks}
    assert sizes == {codec: num_encoded_bytes(codec, 640) for codec in CODECS}


@pytest.mark.parametrize(
    ("tensor", "codec", "sentence"),
    [
        (torch.zeros(1, dtype=torch.complex64), "raw", "cannot be sent"),
        (torch.zeros(1), "zip", "unknown codec"),
        (torch.zeros(1, dtype=torch.int64), "fp16", "floating-point"),
        (torch.tensor([1e6]), "fp16", "past 65504"),
        (torch.tensor([float("nan")]), "int8", "infinite values or NaN"),
        (torch.tensor([float("inf")]), "int8", "infinite values or NaN"),
    ],
)
def test_what_cannot_be_sent_is_said_so(tensor: torch.Tensor, codec: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        encode_tensor(tensor, codec)


@pytest.mark.parametrize(
    "header",
    [
        ("float32", (2,), "raw", b"1234567"),
        ("float32", (2,), "raw", b"123456789"),
        ("float32", (2, 2), "raw", b"12345678"),
        ("float32", (-1, -2), "raw", b"12345678"),
        ("float32", (1,) * 9, "raw", b"1234"),
        ("float32", (1 << 62, 1 << 62), "raw", b""),
        ("float32", (1 << 40,), "raw", b""),
        ("float64", (1,), "raw", b"12345678"),
        ("float32", (1,), "zip", b"1234"),
        ("int64", (4,), "fp16", b"12345678"),
        ("float32", (65,), "int8", b"x" * 69),
        ("float32", (65,), "int4", b"x" * 36),
        ("float32", (65,), "int4", b"x" * 38),
        ("float32", (65,), "int2", b"x" * 20),
        ("int32", (64,), "int2", b"x" * 18),
        ("float32", (1 << 62,), "int2", b"x" * 18),
        ("", (), "", b""),
    ],
)
def test_a_header_that_does_not_fit_is_refused_before_memory_is_taken(
    header: tuple[str, tuple[int, ...], str, bytes],
) -> None:
    dtype, shape, codec, data = header
    with pytest.raises(MalformedTensor):
        decode_tensor(WireTensor(dtype, shape, codec, memoryview(data)))


def test_the_limit_is_the_receivers() -> None:
    wire = encode_tensor(torch.zeros(100))
    assert decode_tensor(wire, num_bytes_max=400).shape == (100,)
    with pytest.raises(MalformedTensor, match="over the limit of 399"):
        decode_tensor(wire, num_bytes_max=399)


@given(
    st.sampled_from([*DTYPES, "x"]),
    st.lists(st.integers(-2, 40), max_size=9).map(tuple),
    st.sampled_from([*CODECS, "x"]),
    st.binary(max_size=200),
)
def test_random_headers_give_a_tensor_that_fits_or_are_refused(
    dtype: str, shape: tuple[int, ...], codec: str, data: bytes
) -> None:
    try:
        tensor = decode_tensor(WireTensor(dtype, shape, codec, memoryview(data)))
    except MalformedTensor:
        return
    assert tensor.shape == shape and tensor.numel() == math.prod(shape)
