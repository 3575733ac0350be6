"""Blocks that cost what real ones would and change nothing: what a simulated block server computes with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from farflung.model.cache import SpanCache
from farflung.model.lowrank import Additions
from farflung.model.source import ModelSource
from farflung.model.span import Span


class ChargedSpan(Span):
    """Hidden states of the true size go in and come out as they were; caches take their true pages.

    The server charges its compute door with the seconds that the blocks would take.
    """

    def __init__(self, source: ModelSource, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.hidden_size = source.hidden_size
        self._config = source.config
        self.layers = []
        self.plan = None
        self.can_batch = True

    def forward(
        self,
        hidden_BTH: Tensor,
        cache: SpanCache | None,
        *,
        position_ids_BT: Tensor | None = None,
        attention_mask_BS: Tensor | None = None,
        first: int | None = None,
        last: int | None = None,
        prompts_LPH: Tensor | None = None,
        additions: Additions | None = None,
    ) -> Tensor:
        """As `Span.forward`, without the blocks."""
        hidden = self._accept(hidden_BTH, cache, *self._range(first, last))
        if cache is not None:
            cache.advance(hidden.shape[1])
        return hidden

    def forward_batch(
        self,
        pieces: Sequence[tuple[Tensor, SpanCache]],
        *,
        first: int | None = None,
        last: int | None = None,
        additions: Sequence[Additions | None] = (),
    ) -> list[Tensor]:
        """As `Span.forward_batch`, without the blocks."""
        return [self.forward(hidden, cache, first=first, last=last) for hidden, cache in pieces]
