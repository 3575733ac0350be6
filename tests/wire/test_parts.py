"""Named tensors travel as parts: every value once, and slices that do not fit leave nothing changed."""

import math

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farflung.wire.parts import TensorSlice, cut_part, paste_part, plan_of, plan_parts
from farflung.wire.tensor import CODECS, DTYPES, MalformedTensor, WireTensor, encode_tensor

torch.set_num_threads(1)
LENGTHS = st.dictionaries(st.text(max_size=4), st.integers(0, 500), max_size=8)


def over_the_wire(slices: tuple[TensorSlice, ...]) -> tuple[TensorSlice, ...]:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(slices), type=tuple[TensorSlice, ...])


def model() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = {"norm": (7,), "embed": (50, 9), "head": (50, 9), "scalar": (), "empty": (0, 3)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@given(LENGTHS, st.integers(64, 300))
def test_a_plan_holds_every_value_once_and_in_order(lengths: dict[str, int], values_max: int) -> None:
    parts = plan_parts(lengths, values_max)
    flat = [one for part in parts for one in part]
    values = [(one.name, index) for one in flat for index in range(one.offset, one.offset + one.length)]
    assert values == [(name, index) for name in sorted(lengths) for index in range(lengths[name])]
    sizes = [sum(one.length for one in part) for part in parts]
    assert all(size == values_max for size in sizes[:-1]) and all(0 < size <= values_max for size in sizes)


@given(LENGTHS, st.randoms(use_true_random=False))
def test_the_order_in_which_names_are_given_does_not_matter(lengths: dict[str, int], random: object) -> None:
    assert plan_parts(dict(reversed(lengths.items())), 64) == plan_parts(lengths, 64)


def test_parts_too_small_for_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 64 values, not 63"):
        plan_parts({"a": 1}, 63)


@pytest.mark.parametrize("codec", CODECS)
def test_a_model_arrives_part_by_part(codec: str) -> None:
    source, target = model(), {name: torch.full_like(tensor, 9.0) for name, tensor in model().items()}
    if codec.startswith("log"):
        source = {name: tensor.square() for name, tensor in source.items()}
    for part in plan_of(source, 100):
        paste_part(target, over_the_wire(cut_part(source, part, codec)), expected=part)
    for name, tensor in source.items():
        error = float((target[name] - tensor).norm())
        assert error <= {
            "raw": 0.0,
            "fp16": 1e-3,
            "bf16": 1e-2,
            "int8": 0.02,
            "int4": 0.2,
            "int2": 0.6,
            "log8": 0.02,
            "log4": 0.4,
        }[codec] * max(float(tensor.norm()), 1e-9)
    assert (codec == "raw") == all(torch.equal(target[name], tensor) for name, tensor in source.items())


def test_what_is_cut_may_lie_in_any_order_and_have_gradients() -> None:
    source = {"weight": torch.randn(40, 30, requires_grad=True).T}
    target = {"weight": torch.zeros(30, 40)}
    for part in plan_of(source, 128):
        paste_part(target, cut_part(source, part))
    assert torch.equal(target["weight"], source["weight"])


def test_memory_of_a_part_is_bounded_by_the_part() -> None:
    """A slice of a large tensor is a view until it is encoded."""
    source = {"embed": torch.randn(1 << 16)}
    slices = cut_part(source, plan_of(source, 256)[3])
    address = torch.frombuffer(slices[0].tensor.data, dtype=torch.float32).data_ptr()
    assert address == source["embed"].data_ptr() + 3 * 256 * 4


def piece(name: str = "embed", offset: int = 0, length: int = 4, dtype: str = "float32") -> TensorSlice:
    return TensorSlice(name, offset, encode_tensor(torch.ones(length, dtype=DTYPES[dtype])))


@pytest.mark.parametrize(
    ("slices", "sentence"),
    [
        ((piece("x" * 500),), "no tensor"),
        ((piece(offset=-1),), "values -1 to 3"),
        ((piece(offset=447),), "which has 450"),
        ((piece(offset=1 << 62),), "which has 450"),
        ((piece(length=0),), "at least one value"),
        ((piece(dtype="float16"),), "float32 here"),
        ((piece(dtype="int64"),), "float32 here"),
        ((piece(), piece(offset=3)), "overlap at value 3"),
        ((piece(offset=8), piece("norm"), piece(offset=5)), "overlap at value 8"),
        ((piece(), piece()), "overlap at value 0"),
        ((TensorSlice("embed", 0, WireTensor("float32", (2, 2), "raw", memoryview(bytes(16)))),), "one dimension"),
        ((TensorSlice("embed", 0, WireTensor("float32", (), "raw", memoryview(bytes(4)))),), "one dimension"),
        ((TensorSlice("embed", 0, WireTensor("float32", (-1,), "raw", memoryview(b""))),), "at least one value"),
        ((piece("norm"), TensorSlice("embed", 0, WireTensor("float32", (4,), "int4", memoryview(b"")))), "0 bytes"),
        ((piece("norm"), TensorSlice("embed", 0, WireTensor("float32", (4,), "zip", memoryview(b"")))), "unknown"),
    ],
)
def test_slices_that_do_not_fit_change_nothing(slices: tuple[TensorSlice, ...], sentence: str) -> None:
    target = model()
    with pytest.raises(MalformedTensor, match=sentence):
        paste_part(target, slices)
    assert all(torch.equal(target[name], tensor) for name, tensor in model().items())


def test_a_part_that_is_not_the_expected_one_is_refused() -> None:
    target = model()
    first, second = plan_of(target, 300)[:2]
    slices = cut_part(target, second)
    assert len(slices) == 2
    paste_part(target, slices, expected=second)
    for other in (cut_part(target, first), slices[:-1], slices[::-1], ()):
        with pytest.raises(MalformedTensor, match="expected"):
            paste_part(target, other, expected=second)


NUMBERS = st.one_of(st.integers(-3, 70), st.sampled_from([1 << 40, 1 << 63]))
SLICES = st.builds(
    lambda name, offset, dtype, shape, codec, data: TensorSlice(
        name, offset, WireTensor(dtype, tuple(shape), codec, memoryview(data))
    ),
    st.sampled_from(["embed", "norm", "scalar", "empty", "x"]),
    NUMBERS,
    st.sampled_from(["float32", "float16", "x"]),
    st.lists(NUMBERS, max_size=2),
    st.sampled_from([*CODECS, "x"]),
    st.binary(max_size=80),
)


@given(st.lists(SLICES, max_size=3))
@settings(max_examples=300)
def test_random_slices_are_pasted_or_refused(slices: list[TensorSlice]) -> None:
    target = model()
    before = {name: tensor.clone() for name, tensor in target.items()}
    try:
        paste_part(target, slices)
    except MalformedTensor:
        assert all(torch.equal(target[name], tensor) for name, tensor in before.items())
        return
    assert all(math.prod(one.tensor.shape) <= target[one.name].numel() for one in slices)
