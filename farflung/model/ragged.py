"""Attention for sessions of all lengths in one forward, through transformers' attention registry.

The new tokens of all sequences lie side by side in one row, so that every matrix is read once for all of them: decode
steps, of one token each, next to chunks of prompts. Only attention tells them apart: registered under its own name, it
is handed the row by any family that asks the registry, writes new keys and values into the pages of their sessions,
and lets every sequence look at its own, by the family's former attention.

Legend: N tokens of all sequences, S keys of one sequence, H heads, D head dimension.
"""

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from farflung.model.cache import SpanCache
from farflung.model.pool import read

NAME = "farflung_ragged"
PLAIN_ARGUMENTS = frozenset({"scaling", "dropout", "sliding_window"})
"""What a family may say to its attention that the short way of one token takes into account (the window is in what
the cache hands out)."""

_running: ContextVar["RaggedBatch"] = ContextVar("the batch of sequences that is being computed")


@dataclass(frozen=True, slots=True)
class SequenceInBatch:
    """One row of one session in the batch."""

    cache: SpanCache
    row: int
    start: int
    """Of its new tokens among those of the batch."""
    num_new: int


class RaggedBatch(Cache):
    """Sessions side by side, seen by transformers as one cache of one row."""

    def __init__(self, caches: Sequence[tuple[SpanCache, int]], attention: str) -> None:
        """`caches` with the new tokens of each row, room for which they have (`SpanCache.expect`); all of one pool.
        `attention`: the implementation that the family uses otherwise."""
        super().__init__(layers=[])
        self.pool = caches[0][0].pool
        self.num_attended = 0
        """Layers that asked the registry."""
        self._attention = attention
        self._sequences: list[SequenceInBatch] = []
        slots: list[Tensor] = []
        num_tokens = 0
        for cache, num_new in caches:
            assert cache.pool is self.pool, "a batch is computed in one pool"
            for row, places in enumerate(cache.places(cache.length, cache.length + num_new)):
                self._sequences.append(SequenceInBatch(cache, row, num_tokens, num_new))
                slots += [torch.arange(first, first + number) for first, number in places]
                num_tokens += num_new
        self._slots_N = torch.cat(slots)
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """First position and number of new tokens of every sequence."""
        return [(each.cache.length, each.num_new) for each in self._sequences]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values [1, H, N, D] into the pages; what attention may see it finds there."""
        keys, values = self.pool.storage(layer_idx, key_states, value_states)
        slots_N = self._slots_N = self._slots_N.to(keys.device)
        keys.index_copy_(1, slots_N, key_states[0])
        values.index_copy_(1, slots_N, value_states[0])
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing is asked that would depend on it."""
        return 0

    def attend(self, module: Any, query_1HND: Tensor, keys: Tensor, values: Tensor, **kwargs: Any) -> Tensor:
        """[1, N, H, D]: what every token sees of its own sequence."""
        self.num_attended += 1
        block = module.layer_idx
        keys, values = self.pool.storage(block, keys, values)
        is_plain = self._attention == "sdpa" and all(
            value is None for name, value in kwargs.items() if name not in PLAIN_ARGUMENTS
        )
        outputs: list[Tensor] = []
        for each in self._sequences:
            query = query_1HND.narrow(2, each.start, each.num_new)
            cache, end = each.cache, each.cache.length + each.num_new
            places = cache.places(cache.window_start(block), end)[each.row]
            if is_plain and each.num_new == 1:
                outputs.append(_attend_one(query, keys, values, places, kwargs.get("scaling")))
                continue
            seen = read(keys, places).unsqueeze(0), read(values, places).unsqueeze(0)
            mask = self._mask(cache, each.num_new, block, query)
            outputs.append(self._former(module)(module, query, *seen, mask, **kwargs)[0])
        return torch.cat(outputs, dim=1)

    def _former(self, module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
        """The attention of the family itself."""
        eager: Any = getattr(inspect.getmodule(type(module)), "eager_attention_forward", None)
        return ALL_ATTENTION_FUNCTIONS.get_interface(self._attention, eager)

    def _mask(self, cache: SpanCache, num_new: int, block: int, query: Tensor) -> Tensor:
        """[1, 1, new tokens, S], to be added: 0 where a token may look, the least number elsewhere."""
        window = cache.window(block)
        key = (id(cache), window)
        if key not in self._masks:
            new = torch.arange(cache.length, cache.length + num_new, device=query.device)[:, None]
            seen = torch.arange(cache.window_start(block), cache.length + num_new, device=query.device)[None, :]
            is_hidden = seen > new
            if window is not None:
                is_hidden |= seen <= new - window
            mask = torch.zeros(is_hidden.shape, dtype=query.dtype, device=query.device)
            self._masks[key] = mask.masked_fill_(is_hidden, torch.finfo(query.dtype).min)[None, None]
        return self._masks[key]


def _attend_one(
    query_1H1D: Tensor, keys: Tensor, values: Tensor, places: Sequence[tuple[int, int]], scaling: float | None
) -> Tensor:
    """One token looks at all that is given, [1, 1, H, D]. Heads that share keys stand as queries of one head.

    Stretches that do not lie side by side are looked at one by one and weighed by what each sums up to: copying them
    together would cost as much as reading them twice.
    """
    _, num_heads, _, dimension = query_1H1D.shape
    query = query_1H1D.reshape(1, keys.shape[0], num_heads // keys.shape[0], dimension)
    if len(places) == 1 or query.device.type != "cpu":
        seen = read(keys, places).unsqueeze(0), read(values, places).unsqueeze(0)
        output = torch.nn.functional.scaled_dot_product_attention(query, *seen, scale=scaling)
    else:
        parts = [
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, keys.narrow(1, *place).unsqueeze(0), values.narrow(1, *place).unsqueeze(0), scale=scaling
            )
            for place in places
        ]
        weights = torch.stack([log_sum for _, log_sum in parts]).softmax(0).unsqueeze(-1)
        output = (torch.stack([part for part, _ in parts]) * weights).sum(0).to(query.dtype)
    return output.reshape(1, 1, num_heads, -1)


def _ragged_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """What transformers finds in its registry."""
    return _running.get().attend(module, query, key, value, **kwargs), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _ragged_attention)


@contextmanager
def running(batch: RaggedBatch, config: PreTrainedConfig, attention: str) -> Generator[None]:
    """Layers whose `config` this is ask for the batch's attention."""
    token = _running.set(batch)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = attention
        _running.reset(token)
