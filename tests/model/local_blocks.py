"""All of a model's blocks in this process, as one or more spans."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from farflung.model.cache import SpanCache
from farflung.model.load import load_span
from farflung.model.source import ModelSource
from farflung.model.span import Span


class LocalCache(Cache):
    """The caches of a chain of spans, moved together; what `generate` asks of a cache and nothing more."""

    def __init__(self, spans: Sequence[Span]) -> None:
        super().__init__(layers=[])
        self.caches: list[SpanCache] = [span.new_cache() for span in spans]

    def __len__(self) -> int:
        """Never 0, for some families ask whether there is a cache by its truth."""
        return sum(len(cache) for cache in self.caches)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.caches[0].length

    def crop(self, tokens_to_remove: int) -> None:
        for cache in self.caches:
            cache.crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for cache in self.caches:
            cache.reorder(beam_idx)

    @property
    def is_compileable(self) -> bool:
        return False


class LocalBlocks:
    """Passes hidden states through a chain of spans."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = list(spans)

    def new_cache(self) -> LocalCache:
        return LocalCache(self.spans)

    def __call__(
        self,
        hidden_BTH: Tensor,
        *,
        position_ids_BT: Tensor | None,
        attention_mask_BS: Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool,
    ) -> Tensor:
        assert past_key_values is None or isinstance(past_key_values, LocalCache)
        given: dict[str, Any] = {"position_ids_BT": position_ids_BT, "attention_mask_BS": attention_mask_BS}
        for number, span in enumerate(self.spans):
            if torch.is_grad_enabled():
                hidden_BTH = span.forward_train(hidden_BTH, **given)
            else:
                cache = None if past_key_values is None else past_key_values.caches[number]
                hidden_BTH = span.forward(hidden_BTH, cache, **given)
        return hidden_BTH


def split_evenly(num_blocks: int, num_spans: int) -> list[tuple[int, int]]:
    """Ranges of blocks for a chain of spans."""
    edges = [round(number * num_blocks / num_spans) for number in range(num_spans + 1)]
    return list(itertools.pairwise(edges))


def load_chain(source: ModelSource, num_spans: int) -> LocalBlocks:
    """Load the whole model as a chain of spans."""
    return LocalBlocks([load_span(source, first, last) for first, last in split_evenly(source.num_blocks, num_spans)])
