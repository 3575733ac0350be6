"""Where the values of a sharded tensor lie: pieces (name, global offset, length) that no mesh appears in.

    site of 2 FSDP ranks      rank 0: (w, 0, 6)   rank 1: (w, 6, 6)
    site of 1 process         rank 0: (w, 0, 12)
    2 lanes on the wire       lane 0: (w, 0, 6)   lane 1: (w, 6, 6)

Offsets count values of the whole tensor in row-major order, so that sites which shard differently mean the same by a
piece. Sites exchange lanes: equal shares of every tensor, cut as FSDP2 cuts, so that a site with as many ranks as there
are lanes sends each rank's own shard and nothing moves inside it.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.distributed.tensor import DTensor


class Piece(NamedTuple):
    """Values [offset, offset + length) of the named tensor, flattened in row-major order."""

    name: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        """One past the last value."""
        return self.offset + self.length

    def overlap(self, other: "Piece") -> "Piece | None":
        """What both hold; None if that is nothing."""
        first, end = max(self.offset, other.offset), min(self.end, other.end)
        return Piece(self.name, first, end - first) if self.name == other.name and first < end else None


Layout = Mapping[str, tuple[Piece, ...]]
"""Name -> the pieces that one rank (or lane) holds, in the order in which its local values lie."""


class Transfer(NamedTuple):
    """A piece that one rank sends to another, or keeps (`source == target`)."""

    source: int
    target: int
    piece: Piece


def local_values(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies on this rank, sharing its memory: a DTensor's shard, or the tensor itself."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def local_pieces(name: str, tensor: torch.Tensor) -> tuple[Piece, ...]:
    """The pieces of the whole tensor that `local_values` holds here, in its row-major order.

    Raises:
        ValueError: partial sums, which are no part of the tensor's values yet.
    """
    indices = [list(range(size)) for size in tensor.shape]
    if isinstance(tensor, DTensor):
        coordinate = tensor.device_mesh.get_coordinate()
        assert coordinate is not None, "a rank outside the mesh has no model"
        for mesh_dimension, placement in enumerate(tensor.placements):
            if placement.is_partial():
                raise ValueError(f"{name} holds partial sums ({placement}); redistribute it before it is averaged")
            dimension: int | None = getattr(placement, "dim", None)
            if dimension is None:
                continue
            num_shards, shard = tensor.device_mesh.size(mesh_dimension), coordinate[mesh_dimension]
            num_strides: int = getattr(placement, "split_factor", 1)
            indices[dimension] = _shard(indices[dimension], num_shards, shard, num_strides)
    return pieces_of_block(name, tuple(tensor.shape), indices)


def _shard(indices: list[int], num_shards: int, shard: int, num_strides: int) -> list[int]:
    """What `torch.chunk` gives a shard; a strided one (FSDP over tensor parallelism) gets its share of every stride."""
    return [index for part in _chunks(indices, num_strides) for index in _chunks(part, num_shards)[shard]]


def _chunks(indices: list[int], num_chunks: int) -> list[list[int]]:
    size = max(1, -(-len(indices) // num_chunks))
    return [indices[chunk * size : (chunk + 1) * size] for chunk in range(num_chunks)]


def pieces_of_block(name: str, shape: Sequence[int], indices: Sequence[Sequence[int]]) -> tuple[Piece, ...]:
    """Pieces of the block that has, along every dimension, the given ascending indices of a tensor of `shape`."""
    if any(len(of_dimension) == 0 for of_dimension in indices):
        return ()
    last = len(shape) - 1  # the last dimension that is not held whole: what follows it is contiguous
    while last >= 0 and len(indices[last]) == shape[last]:
        last -= 1
    if last < 0:
        return (Piece(name, 0, math.prod(shape)),)
    strides = [math.prod(shape[dimension + 1 :]) for dimension in range(last + 1)]
    spans = list(_spans(indices[last]))
    found: list[Piece] = []
    for before in itertools.product(*indices[:last]):
        base = sum(index * stride for index, stride in zip(before, strides, strict=False))
        for first, end in spans:
            found.append(Piece(name, base + first * strides[last], (end - first) * strides[last]))
    return tuple(found)


def _spans(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs [first, end) of consecutive indices."""
    first = indices[0]
    for index, following in itertools.pairwise([*indices, -1]):
        if following != index + 1:
            yield first, index + 1
            first = following


def cut_lanes(shapes: Mapping[str, Sequence[int]], num_lanes: int) -> list[Layout]:
    """Every tensor in shares along its first dimension, in whole rows (a single value goes to the first lane).

    The same names, shapes and number give the same lanes everywhere. Together they hold every value once.
    """
    lanes: list[dict[str, tuple[Piece, ...]]] = [{} for _ in range(num_lanes)]
    for name, shape in shapes.items():
        num_rows, row = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
        for lane, rows in zip(lanes, _chunks(list(range(num_rows)), num_lanes), strict=True):
            if rows and row:
                lane[name] = (Piece(name, rows[0] * row, len(rows) * row),)
    return list(lanes)


class Holding:
    """The pieces of one tensor on one rank, found by their offsets."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        """`pieces`: in the order of the local values, with rising offsets."""
        self._pieces = pieces
        self._offsets = [piece.offset for piece in pieces]
        self._firsts = list(itertools.accumulate((piece.length for piece in pieces), initial=0))

    def find(self, wanted: Piece) -> Iterator[tuple[Piece, int]]:
        """What is held of a piece, in rising parts, each with the place of its first value in the local values."""
        for place in range(max(0, bisect_right(self._offsets, wanted.offset) - 1), len(self._pieces)):
            held = self._pieces[place]
            if held.offset >= wanted.end:
                return
            shared = held.overlap(wanted)
            if shared is not None:
                yield shared, self._firsts[place] + shared.offset - held.offset


def plan_transfers(sources: Sequence[Holding], targets: Sequence[Sequence[Piece]]) -> list[Transfer]:
    """How one tensor gets from the ranks that hold `sources` to those that want `targets`.

    A rank takes what it can from itself, and the rest from the lowest rank that has it; ordered by target and offset.

    Raises:
        ValueError: values that no rank holds.
    """
    plan: list[Transfer] = []
    for target, wanted in enumerate(targets):
        missing = list(wanted)
        for source in sorted(range(len(sources)), key=lambda rank: (rank != target, rank)):
            rests: list[Piece] = []
            for piece in missing:
                found = [shared for shared, _ in sources[source].find(piece)]
                plan += [Transfer(source, target, shared) for shared in found]
                rests += _without(piece, found)
            missing = rests
        if missing:
            name, offset, _ = missing[0]
            raise ValueError(f"no rank of this site holds values {offset} to {missing[0].end} of {name}")
    return sorted(plan, key=lambda transfer: (transfer.target, transfer.piece.offset))


def _without(piece: Piece, taken: Sequence[Piece]) -> Iterator[Piece]:
    """What is left of a piece between parts of it, which rise."""
    first = piece.offset
    for part in [*taken, Piece(piece.name, piece.end, 0)]:
        if part.offset > first:
            yield Piece(piece.name, first, part.offset - first)
        first = part.end
