"""The directions that slots stand for, as integers: a slot's direction in a tensor is the same on every machine.

rank1       a b^T with a, b of +1 and -1 (a vector: +1 and -1); its entries are +1 and -1 too
rademacher  +1 and -1, independent
gaussian    normal quantiles, integers in units of 1/256 (the directions of MeZO)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from farflung.systems.onebyte.header import GAUSSIAN_FRACTION_BITS, Header, TensorShape
from farflung.systems.onebyte.normal import normal_quantiles, normals_of
from farflung.systems.onebyte.randomness import signs_of, slot_bytes, stream_key


@dataclass(frozen=True, slots=True)
class Directions:
    """The directions of E slots in one tensor of R rows and C columns; either factors or values."""

    left: torch.Tensor | None
    """a of each slot, int8 [E, R]."""
    right: torch.Tensor | None
    """b of each slot, int8 [E, C]."""
    values: torch.Tensor | None
    """All entries, int8 or int16 [E, R * C], in units of 2^-fraction_bits."""
    fraction_bits: int = 0

    def entries(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The directions themselves, float32 [E, *shape]."""
        if self.values is not None:
            return (self.values.float() * 2.0**-self.fraction_bits).view(-1, *shape)
        assert self.left is not None and self.right is not None
        return (self.left.float().unsqueeze(2) * self.right.float().unsqueeze(1)).view(-1, *shape)

    def repeated(self, count: int) -> "Directions":
        """Each direction `count` times, one after another."""

        def repeat(numbers: torch.Tensor | None) -> torch.Tensor | None:
            return None if numbers is None else numbers.repeat_interleave(count, 0)

        return Directions(repeat(self.left), repeat(self.right), repeat(self.values), self.fraction_bits)

    def products(self, matrix: torch.Tensor) -> torch.Tensor:
        """The inner product of each direction with a float32 matrix [R, C], float64 [E]."""
        if self.values is not None:
            return (self.values.float() @ matrix.reshape(-1)).double() * 2.0**-self.fraction_bits
        assert self.left is not None and self.right is not None
        return ((self.left.float() @ matrix) * self.right.float()).double().sum(1)


def draw_directions(
    header: Header,
    tensor: TensorShape,
    round_number: int,
    first_slot: int,
    num_slots: int,
    device: torch.device | str = "cpu",
) -> Directions:
    """The directions of consecutive slots of a round in a tensor."""
    num_bytes = direction_bytes(header, tensor)
    key = stream_key(header.run, round_number, tensor.name)
    bits = slot_bytes(header.generator, key, first_slot, num_slots, num_bytes, device)
    if header.direction == "gaussian":
        return Directions(None, None, normals_of(bits, tensor.num_elements), GAUSSIAN_FRACTION_BITS)
    if not is_factored(header, tensor):
        return Directions(None, None, signs_of(bits, tensor.num_elements))
    signs = signs_of(bits, tensor.rows + tensor.shape[-1])
    return Directions(signs[:, : tensor.rows], signs[:, tensor.rows :], None)


def draw_in_pieces(
    header: Header,
    tensor: TensorShape,
    round_number: int,
    slots: range,
    num_bytes_max: int,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[range, Directions]]:
    """The same for any number of slots, a few at a time, each piece with the slots it holds: about `num_bytes_max`
    bytes of directions, but at least one slot."""
    size = max(1, num_bytes_max // direction_elements(header, tensor))
    for first in range(slots.start, slots.stop, size):
        piece = range(first, min(first + size, slots.stop))
        yield piece, draw_directions(header, tensor, round_number, piece.start, len(piece), device)


def is_factored(header: Header, tensor: TensorShape) -> bool:
    """Whether a tensor's directions are products of two vectors."""
    return header.direction == "rank1" and len(tensor.shape) > 1


def direction_elements(header: Header, tensor: TensorShape) -> int:
    """Random values that one slot needs for a tensor."""
    return tensor.rows + tensor.shape[-1] if is_factored(header, tensor) else tensor.num_elements


def direction_bytes(header: Header, tensor: TensorShape) -> int:
    """Random bytes that one slot needs for a tensor."""
    elements = direction_elements(header, tensor)
    return 2 * elements if header.direction == "gaussian" else -(-elements // 8)


def largest_value(header: Header) -> int:
    """The largest integer in any direction."""
    return int(normal_quantiles().max()) if header.direction == "gaussian" else 1
