"""What a block server demands of a part of an adapter before it spends memory or time on it (pure)."""

from collections.abc import Mapping

from farflung.systems.swarm.adapters import LETTERS, name_of, split_name
from farflung.systems.swarm.checks import FLOATING_DTYPES, Limits
from farflung.systems.swarm.messages import HandAdapter
from farflung.wire.tensor import DTYPES, WireTensor

NUM_BLOCKS_MAX = 4096
LayerSizes = Mapping[int, Mapping[str, tuple[int, int]]]
"""Features that enter and leave the linear layers of blocks, by block and name within it."""


def check_name(part: HandAdapter) -> str | None:
    """Why this cannot be a part of an adapter of any model, in a sentence for its sender; None if it may be."""
    if not 1 <= len(part.digests) <= NUM_BLOCKS_MAX or name_of(part.digests) != part.adapter:
        return "an adapter's name is the hash of its blocks' digests"
    if not 0 <= part.first < part.last <= len(part.digests):
        return "a part of an adapter needs a range of blocks that is not empty"
    return None


def check_factors(part: HandAdapter, layer_sizes: LayerSizes, limits: Limits) -> str | None:
    """The same of its factors, for blocks with such layers."""
    for key, factor in part.factors.items():
        name, _, letter = key.rpartition(".")
        block, layer = split_name(name)
        sizes = layer_sizes.get(block, {}).get(layer) if part.first <= block < part.last else None
        if sizes is None or letter not in LETTERS:
            return f"blocks {part.first}:{part.last} have no linear layer for {key[:100]!r}"
        other = part.factors.get(f"{name}.{LETTERS[1 - LETTERS.index(letter)]}")
        if other is None:
            return f"{key[:100]!r} lacks the other factor"
        inner, outer = (factor, other) if letter == LETTERS[0] else (other, factor)
        problem = _check_pair(inner, outer, sizes, limits)
        if problem is not None:
            return f"{name}: {problem}"
    return None


def _check_pair(inner: WireTensor, outer: WireTensor, sizes: tuple[int, int], limits: Limits) -> str | None:
    if any(each.dtype not in FLOATING_DTYPES or each.codec != "raw" for each in (inner, outer)):
        return "factors are raw floating-point matrices"
    rank = inner.shape[0] if len(inner.shape) == 2 else 0
    if not 1 <= rank <= limits.adapter_rank_max:
        return f"an adapter's rank is 1 to {limits.adapter_rank_max} here"
    wide, tall = (rank, sizes[0]), (sizes[1], rank)
    if inner.shape != wide or outer.shape != tall:
        return f"factors of shapes {inner.shape[:4]} and {outer.shape[:4]}, and {wide} and {tall} are needed"
    return None


def num_bytes_of(part: HandAdapter) -> int:
    """What its factors take, by their headers, which `check_factors` has found in order."""
    return sum(factor.shape[0] * factor.shape[1] * DTYPES[factor.dtype].itemsize for factor in part.factors.values())
