"""What passes through remote blocks, how it is cut into micro-batches, and what comes back (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from farflung.model.lowrank import Additions, factors, like
from farflung.systems.swarm.adapters import NamedAdapter
from farflung.world.address import PeerId


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes with the hidden states through every span."""

    position_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    prompts_LPH: torch.Tensor | None = None
    """Deep prompts of all blocks."""
    adapter: NamedAdapter | None = None
    codec: str = "raw"
    is_kept: bool = False
    """Gradients will be asked for: servers may keep what those need."""


@dataclass(frozen=True, slots=True)
class Computed:
    """Who computed a span, and under which name it may have been kept there."""

    peer: PeerId
    request: str


@dataclass(frozen=True, slots=True)
class SpanInput:
    """What one span of the forward pass was given, kept for the backward pass."""

    first: int
    last: int
    hidden: torch.Tensor
    computed: Computed | None = None
    """None: it is an input that was recomputed."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One micro-batch on its way through the blocks: what its backward pass needs."""

    batch: Batch
    inputs: tuple[SpanInput, ...]


@dataclass(frozen=True, slots=True)
class Gradients:
    """By what went into a pass."""

    hidden: torch.Tensor
    prompts_LPH: torch.Tensor | None = None
    factors: Additions | None = None
    """Of an adapter that is being trained, with the scale as its additions have it."""


def micro_batches(hidden: torch.Tensor, batch: Batch, num_tokens_max: int) -> list[tuple[torch.Tensor, Batch]]:
    """Whole rows of at most so many tokens together (one row at least), evenly, with what goes with them."""
    num_rows_max = max(1, num_tokens_max // hidden.shape[1])
    num_rows = -(-hidden.shape[0] // -(-hidden.shape[0] // num_rows_max))
    parts: list[tuple[torch.Tensor, Batch]] = []
    for first in range(0, hidden.shape[0], num_rows):
        rows = slice(first, first + num_rows)
        ids, mask = batch.position_ids, batch.attention_mask
        ids = ids.expand(hidden.shape[:2])[rows] if ids is not None else None
        mask = mask[rows] if mask is not None else None
        parts.append((hidden[rows], replace(batch, position_ids=ids, attention_mask=mask)))
    return parts


def add_up(of_micro_batches: Sequence[Gradients]) -> Gradients:
    """Of all rows: those by hidden states side by side, the others added up."""
    of_prompts = [each.prompts_LPH for each in of_micro_batches if each.prompts_LPH is not None]
    of_factors = [each.factors for each in of_micro_batches if each.factors is not None]
    return Gradients(
        torch.cat([each.hidden for each in of_micro_batches]),
        sum(of_prompts[1:], of_prompts[0]) if of_prompts else None,
        like(of_factors[0], [torch.stack(same).sum(0) for same in zip(*map(factors, of_factors), strict=True)])
        if of_factors
        else None,
    )
