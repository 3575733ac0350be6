"""A large set of named tensors as parts of bounded size, so that a model travels without a second copy of itself.

Both sides plan the same parts from names and lengths alone. A part holds slices of consecutive tensors:

    tensors by name   │ a ───────────────── │ b ── │ c ── │ d ──────────
    parts             │ 0         │ 1              │ 2             │ 3
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import torch

from farflung.wire.blockwise import BLOCK_LENGTH
from farflung.wire.tensor import DTYPES, MalformedTensor, WireTensor, decode_tensor, encode_tensor

PART_VALUES = 1 << 21
"""Values in a part by default: 8 MiB of float32."""


class SlicePlan(NamedTuple):
    """Which values of which tensor, counted row by row."""

    name: str
    offset: int
    length: int


Part = tuple[SlicePlan, ...]
"""What travels together."""


class TensorSlice(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A run of a named tensor's values inside a message."""

    name: str
    offset: int
    """In values."""
    tensor: WireTensor
    """One-dimensional."""


def plan_parts(lengths: Mapping[str, int], values_max: int = PART_VALUES) -> list[Part]:
    """Parts of at most `values_max` values that together hold every value of tensors of `lengths` once, by name.

    Raises:
        ValueError: `values_max` is less than a block of the blockwise codecs.
    """
    if values_max < BLOCK_LENGTH:
        raise ValueError(f"a part has at least {BLOCK_LENGTH} values, not {values_max}; choose a larger part")
    parts: list[Part] = []
    part: list[SlicePlan] = []
    room = values_max
    for name in sorted(lengths):
        offset = 0
        while offset < lengths[name]:
            length = min(room, lengths[name] - offset)
            part.append(SlicePlan(name, offset, length))
            offset, room = offset + length, room - length
            if not room:
                parts.append(tuple(part))
                part, room = [], values_max
    return [*parts, tuple(part)] if part else parts


def plan_of(tensors: Mapping[str, torch.Tensor], values_max: int = PART_VALUES) -> list[Part]:
    """`plan_parts` for tensors that are here."""
    return plan_parts({name: tensor.numel() for name, tensor in tensors.items()}, values_max)


def cut_part(tensors: Mapping[str, torch.Tensor], part: Part, codec: str = "raw") -> tuple[TensorSlice, ...]:
    """The values of `part`, encoded; "raw" ones may be views of `tensors`: send them before those change.

    Raises:
        ValueError: values that the codec cannot hold.
    """
    return tuple(
        TensorSlice(name, offset, encode_tensor(run(tensors[name], offset, length), codec))
        for name, offset, length in part
    )


def paste_part(
    target: Mapping[str, torch.Tensor], slices: Sequence[TensorSlice], *, expected: Part | None = None
) -> None:
    """Write `slices` from a peer into contiguous `target`; nothing is written unless all of them fit.

    Raises:
        MalformedTensor: a slice of no tensor here, out of its bounds, of another dtype, twice the same values, or
            slices that are not exactly the `expected` ones.
    """
    planned = tuple(_checked(target, slices))
    if expected is not None and planned != expected:
        raise MalformedTensor("the slices are not those of the part that was expected")
    decoded = [decode_tensor(one.tensor, num_bytes_max=_num_bytes(target, one)) for one in slices]
    for (name, offset, length), values in zip(planned, decoded, strict=True):
        run(target[name], offset, length).copy_(values)


def run(tensor: torch.Tensor, offset: int, length: int) -> torch.Tensor:
    """[length] values of `tensor` from `offset` on, counted row by row; a view if `tensor` is contiguous."""
    return tensor.detach().reshape(-1)[offset : offset + length]


def _checked(target: Mapping[str, torch.Tensor], slices: Sequence[TensorSlice]) -> list[SlicePlan]:
    """What the headers say, in order, once every one of them fits `target`; no memory is taken."""
    for one in slices:
        _check_header(target, one)
    plans = [SlicePlan(one.name, one.offset, one.tensor.shape[0]) for one in slices]
    ordered = sorted(plans)
    for before, after in itertools.pairwise(ordered):
        if before.name == after.name and before.offset + before.length > after.offset:
            raise MalformedTensor(f"slices of {after.name[:80]!r} overlap at value {after.offset}")
    return plans


def _check_header(target: Mapping[str, torch.Tensor], one: TensorSlice) -> None:
    if one.name not in target:
        raise MalformedTensor(f"there is no tensor {one.name[:80]!r} here")
    tensor = target[one.name]
    assert tensor.is_contiguous(), f"{one.name} is pasted into and must be contiguous"
    if DTYPES.get(one.tensor.dtype) is not tensor.dtype:
        raise MalformedTensor(f"{one.name[:80]!r} is {tensor.dtype} here, not {one.tensor.dtype[:40]!r}")
    if len(one.tensor.shape) != 1 or one.tensor.shape[0] < 1:
        raise MalformedTensor(f"a slice has one dimension and at least one value, not {one.tensor.shape[:8]}")
    last = one.offset + one.tensor.shape[0]
    if one.offset < 0 or last > tensor.numel():
        raise MalformedTensor(f"values {one.offset} to {last} of {one.name[:80]!r}, which has {tensor.numel()}")


def _num_bytes(target: Mapping[str, torch.Tensor], one: TensorSlice) -> int:
    return one.tensor.shape[0] * target[one.name].element_size()
