"""Adapters that travel: named by what they hold, so that whoever has one of that name has the very same.

Each block's factors have a digest, and the digest of all blocks' digests is the adapter's name. So a server that holds
some blocks can check its part, and nobody can put anything under a name but what belongs there.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from farflung.model.adapters import LoraAdapter
from farflung.model.lowrank import Additions, BlockAdditions, LowRank
from farflung.systems.swarm.messages import HandAdapter
from farflung.wire.tensor import MalformedTensor, WireTensor, decode_tensor, encode_tensor

DIGEST_BYTES = 32
PART_BYTES = 8 << 20
"""Of one message, unless a single block is larger."""
LETTERS = ("lora_A", "lora_B")
"""What the factors of a layer are called: the inner one, and the outer one with the scale in it."""


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter's values as of now, of all blocks of its model."""

    name: str
    digests: tuple[bytes, ...]
    additions: Additions
    is_passing: bool = False
    """Whether it is about to be replaced by its next version, as in training."""

    @staticmethod
    def of(adapter: LoraAdapter) -> "NamedAdapter":
        """A copy of an adapter as it is now."""
        return NamedAdapter.holding(adapter.additions(), is_passing=adapter.is_trained)

    @staticmethod
    def holding(additions: Additions, *, is_passing: bool = False) -> "NamedAdapter":
        """A copy of these values, for blocks 0 to the last."""
        copied = {
            block: {name: LowRank(_copy(each.inner_RI), _copy(each.outer_OR)) for name, each in within.items()}
            for block, within in additions.items()
        }
        digests = tuple(digest_of(copied[block]) for block in range(len(copied)))
        return NamedAdapter(name_of(digests), digests, copied, is_passing)

    def parts(self, first: int, last: int) -> Iterator[HandAdapter]:
        """The messages that hand a server what blocks [first, last) need."""
        start, num_bytes = first, 0
        for block in range(first, last):
            more = sum(each.bytes for each in self.additions[block].values())
            if num_bytes and num_bytes + more > PART_BYTES:
                yield self._part(start, block)
                start, num_bytes = block, 0
            num_bytes += more
        yield self._part(start, last)

    def _part(self, first: int, last: int) -> HandAdapter:
        factors = {block: self.additions[block] for block in range(first, last)}
        return HandAdapter(
            adapter=self.name,
            digests=self.digests,
            first=first,
            last=last,
            factors=encode_factors(factors),
            is_passing=self.is_passing,
        )


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().clone()


def name_of(digests: Sequence[bytes]) -> str:
    """The name of an adapter whose blocks have these digests."""
    return hashlib.blake2b(b"".join(digests), digest_size=DIGEST_BYTES).hexdigest()


def digest_of(block: BlockAdditions) -> bytes:
    """What tells a block's factors from all others."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(block):
        for letter, tensor in zip(LETTERS, (block[name].inner_RI, block[name].outer_OR), strict=True):
            wire = encode_tensor(tensor)
            digest.update(f"{name}.{letter} {wire.dtype} {wire.shape}\n".encode())
            digest.update(wire.data)
    return digest.digest()


def encode_factors(additions: Additions) -> dict[str, WireTensor]:
    """For a message: by block, layer and letter, as in `3.mlp.up_proj.lora_A`."""
    return {
        f"{block}.{name}.{letter}": encode_tensor(tensor)
        for block, within in additions.items()
        for name, each in within.items()
        for letter, tensor in zip(LETTERS, (each.inner_RI, each.outer_OR), strict=True)
    }


def decode_factors(wire: Mapping[str, WireTensor], first: int, last: int) -> dict[int, dict[str, LowRank]]:
    """What `encode_factors` has written of blocks [first, last).

    Raises:
        MalformedTensor: a header and bytes that do not fit, or factors that are not pairs of layers of these blocks.
    """
    found: dict[int, dict[str, LowRank]] = {block: {} for block in range(first, last)}
    for key, inner in wire.items():
        name, _, letter = key.rpartition(".")
        if letter == LETTERS[0]:
            block, layer = split_name(name)
            outer = wire.get(f"{name}.{LETTERS[1]}")
            if block not in found or outer is None:
                raise MalformedTensor(f"factors of {name[:100]!r} that are no pair of blocks {first}:{last}")
            found[block][layer] = LowRank(decode_tensor(inner), decode_tensor(outer))
    if 2 * sum(map(len, found.values())) != len(wire):
        raise MalformedTensor(f"factors that are no pairs of blocks {first}:{last}")
    return found


def split_name(name: str) -> tuple[int, str]:
    """(block, layer) of a name such as `3.mlp.up_proj`; block -1 if it is none."""
    block, _, layer = name.partition(".")
    return (int(block) if block.isdecimal() and len(block) < 6 else -1), layer
