"""Blocks that cost what real ones would and change nothing: what a simulated block server computes with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from farflung.model.cache import SpanCache
from farflung.model.lowrank import Additions, factors
from farflung.model.source import ModelSource
from farflung.model.span import Span

SAVED_VALUES = 15
"""Of 32 bits, for each position of a hidden state and block: what autograd saves of a Llama without gradients of its
weights (14.3 measured), and a little for LoRA."""


class ChargedSpan(Span):
    """Hidden states go in and come out as they were; caches take their true pages, and autograd saves as much as of
    real blocks.

    The server charges its compute door with the seconds that the blocks would take.
    """

    def __init__(
        self,
        source: ModelSource,
        first: int,
        last: int,
        *,
        hidden_size: int | None = None,
        layer_sizes: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """`hidden_size`: of what stands for hidden states of the true size, which is the default; `layer_sizes`: of a
        block's layers that an adapter may add to, as large as those of such a model."""
        self._saved_bytes_per_token = 4 * SAVED_VALUES * source.hidden_size
        self.layer_sizes = {block: dict(layer_sizes or {}) for block in range(first, last)}
        self.first = first
        self.last = last
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.hidden_size = hidden_size or source.hidden_size
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

    def forward_train(
        self,
        hidden_BTH: Tensor,
        *,
        position_ids_BT: Tensor | None = None,
        attention_mask_BS: Tensor | None = None,
        first: int | None = None,
        last: int | None = None,
        prompts_LPH: Tensor | None = None,
        additions: Additions | None = None,
    ) -> Tensor:
        """As `Span.forward_train`, without the blocks."""
        first, last = self._range(first, last)
        hidden = self._accept(hidden_BTH, None, first, last)
        num_bytes = hidden.shape[0] * hidden.shape[1] * (last - first) * self._saved_bytes_per_token
        passed: Any = _Passed
        return passed.apply(hidden, num_bytes, *factors(additions or {}))


class _Passed(torch.autograd.Function):
    """Gives back what it is given, has gradients by all of it, and saves so many bytes, which nobody touches."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, num_bytes: int, *added: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty(num_bytes, dtype=torch.uint8))
        ctx.added = [(one.shape, one.dtype) for one in added]
        return hidden.clone()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        return gradient, None, *(torch.zeros(shape, dtype=dtype) for shape, dtype in ctx.added)
