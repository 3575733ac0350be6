"""A large set of named tensors as parts of bounded size, so that a model travels without a second copy of itself.

Both sides plan the same parts from names and lengths alone. A part holds slices of consecutive tensors:

    tensors by name   │ a ───────────────── │ b ── │ c ── │ d ──────────
    parts             │ 0         │ 1              │ 2             │ 3
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import torch

from farflung.wire.blockwise import BLOCK_LENGTH
from farflung.wire.tensor import DTYPES, MalformedTensor, WireTensor, decode_tensor, encode_tensor


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


def plan_parts(lengths: Mapping[str, int], values_max: int) -> list[Part]:
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


def plan_of(tensors: Mapping[str, torch.Tensor], values_max: int) -> list[Part]:
    """`plan_parts` for tensors that are here."""
    return plan_parts({name: tensor.numel() for name, tensor in tensors.items()}, values_max)


def views(tensors: Mapping[str, torch.Tensor], part: Part) -> dict[str, torch.Tensor]:
    """[length] the values of `part` by name, row by row: those of contiguous tensors themselves, else copies."""
    return {name: tensors[name].detach().reshape(-1)[offset : offset + length] for name, offset, length in part}


def cut_part(values: Mapping[str, torch.Tensor], part: Part, codec: str = "raw") -> tuple[TensorSlice, ...]:
    """`values` by name, [length] each as `views` gives them, encoded; "raw" ones stay views: send them before those
    change.

    Raises:
        ValueError: values that the codec cannot hold.
    """
    return slices_of({name: encode_tensor(values[name], codec) for name, _, _ in part}, part)


def slices_of(encoded: Mapping[str, WireTensor], part: Part) -> tuple[TensorSlice, ...]:
    """What is encoded already, with the places where it belongs."""
    return tuple(TensorSlice(name, offset, encoded[name]) for name, offset, _ in part)


def part_values(
    slices: Sequence[TensorSlice], part: Part, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """[length] the values by name that a peer sent as `slices`, in memory of their own.

    Raises:
        MalformedTensor: they are not exactly those of `part`, of another dtype, or damaged; little memory was taken.
    """
    if len(slices) != len(part):
        raise MalformedTensor(f"{len(slices)} slices where {len(part)} were expected")
    for one, plan in zip(slices, part, strict=True):
        if (one.name, one.offset, one.tensor.shape) != (plan.name, plan.offset, (plan.length,)):
            found = f"{one.tensor.shape[:8]} values of {one.name[:80]!r} from {one.offset} on"
            raise MalformedTensor(f"{found} where {plan.length} of {plan.name!r} from {plan.offset} on were expected")
        if DTYPES.get(one.tensor.dtype) is not dtype:
            raise MalformedTensor(f"{one.name[:80]!r} is {dtype} here, not {one.tensor.dtype[:40]!r}")
    return {
        plan.name: decode_tensor(one.tensor, num_bytes_max=plan.length * dtype.itemsize)
        for one, plan in zip(slices, part, strict=True)
    }
