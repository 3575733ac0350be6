"""Named tensors travel as parts: every value once, and slices that are not those of their part are refused."""

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farflung.wire.parts import Part, SlicePlan, TensorSlice, cut_part, part_values, plan_of, plan_parts, views
from farflung.wire.tensor import CODECS, DTYPES, MalformedTensor, WireTensor, encode_tensor

torch.set_num_threads(1)
LENGTHS = st.dictionaries(st.text(max_size=4), st.integers(0, 500), max_size=8)


def over_the_wire(slices: tuple[TensorSlice, ...]) -> tuple[TensorSlice, ...]:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(slices), type=tuple[TensorSlice, ...])


def paste(target: dict[str, torch.Tensor], slices: tuple[TensorSlice, ...], part: Part) -> None:
    values = part_values(slices, part)
    for name, place in views(target, part).items():
        place.copy_(values[name])


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
        paste(target, over_the_wire(cut_part(views(source, part), part, codec)), part)
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
        paste(target, cut_part(views(source, part), part), part)
    assert torch.equal(target["weight"], source["weight"])


def test_memory_of_a_part_is_bounded_by_the_part() -> None:
    """A slice of a large tensor is a view until it is encoded."""
    source = {"embed": torch.randn(1 << 16)}
    part = plan_of(source, 256)[3]
    slices = cut_part(views(source, part), part)
    address = torch.frombuffer(slices[0].tensor.data, dtype=torch.float32).data_ptr()
    assert address == source["embed"].data_ptr() + 3 * 256 * 4


def piece(name: str = "embed", offset: int = 0, length: int = 4, dtype: str = "float32") -> TensorSlice:
    return TensorSlice(name, offset, encode_tensor(torch.ones(length, dtype=DTYPES[dtype])))


EXPECTED = (SlicePlan("embed", 446, 4), SlicePlan("norm", 0, 4))
NORM = piece("norm")


def embed(wire: WireTensor) -> TensorSlice:
    return TensorSlice("embed", 446, wire)


@pytest.mark.parametrize(
    ("slices", "sentence"),
    [
        ((), "0 slices where 2 were expected"),
        ((piece(offset=446),), "1 slices where 2"),
        ((piece(offset=446), NORM, NORM), "3 slices where 2"),
        ((NORM, piece(offset=446)), "of 'norm' from 0 on where 4 of 'embed'"),
        ((piece("x" * 500, 446), NORM), "where 4 of 'embed'"),
        ((piece(offset=-1), NORM), "from -1 on where"),
        ((piece(offset=1 << 62), NORM), "where 4 of 'embed' from 446"),
        ((piece(offset=446, length=0), NORM), r"\(0,\) values of 'embed'"),
        ((piece(offset=446, length=5), NORM), r"\(5,\) values of 'embed'"),
        ((piece(offset=446, dtype="float16"), NORM), "float32 here"),
        ((piece(offset=446, dtype="int64"), NORM), "float32 here"),
        ((embed(WireTensor("float32", (2, 2), "raw", memoryview(bytes(16)))), NORM), r"\(2, 2\) values"),
        ((embed(WireTensor("float32", (), "raw", memoryview(bytes(4)))), NORM), r"\(\) values"),
        ((embed(WireTensor("float32", (4,), "int4", memoryview(b""))), NORM), "0 bytes"),
        ((embed(WireTensor("float32", (4,), "zip", memoryview(b""))), NORM), "unknown"),
    ],
)
def test_slices_that_are_not_those_of_the_part_are_refused(slices: tuple[TensorSlice, ...], sentence: str) -> None:
    with pytest.raises(MalformedTensor, match=sentence):
        part_values(slices, EXPECTED)


def test_another_part_of_the_same_model_is_refused() -> None:
    source = model()
    first, second = plan_of(source, 300)[:2]
    slices = cut_part(views(source, second), second)
    assert list(part_values(slices, second)) == [plan.name for plan in second]
    with pytest.raises(MalformedTensor, match="expected"):
        part_values(slices, first)


NUMBERS = st.one_of(st.integers(-3, 70), st.sampled_from([1 << 40, 1 << 63]))
SLICES = st.builds(
    lambda name, offset, dtype, shape, codec, data: TensorSlice(
        name, offset, WireTensor(dtype, tuple(shape), codec, memoryview(data))
    ),
    st.sampled_from(["embed", "norm", "scalar", "empty", "x"]),
    NUMBERS | st.sampled_from([0, 8, 16]),
    st.sampled_from(["float32", "float16", "x"]),
    st.lists(NUMBERS, max_size=2) | st.just([4]),
    st.sampled_from([*CODECS, "x"]),
    st.binary(max_size=80) | st.binary(min_size=16, max_size=16),
)


@given(st.lists(SLICES, max_size=3))
@settings(max_examples=300)
def test_random_slices_are_taken_or_refused(slices: list[TensorSlice]) -> None:
    part = tuple(SlicePlan("embed", 8 * index, 4) for index in range(len(slices)))
    try:
        values = part_values(slices, part)
    except MalformedTensor:
        return
    assert all(tensor.shape == (4,) and tensor.dtype == torch.float32 for tensor in values.values())
