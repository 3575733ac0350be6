"""A span's cache: rollback and reordering are exact, growth and failures leave no trace, budgets add up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from farflung.model.budget import bytes_per_token
from farflung.model.cache import SpanCache
from farflung.model.pool import CAPACITY_TOKENS_MIN
from farflung.model.source import ModelSource
from farflung.model.span import Span
from tests.families import FAMILIES, WINDOW_TOKENS
from tests.model.local_blocks import LocalBlocks

Chains = Callable[[str, int], LocalBlocks]


def hidden_states(span: Span, num_rows: int, num_tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, num_tokens, span.hidden_size, generator=torch.Generator().manual_seed(seed))


def fed(span: Span, hidden: Tensor, pieces: tuple[int, ...] = ()) -> SpanCache:
    """A cache that has seen hidden states, in pieces of these lengths or at once."""
    cache = span.new_cache()
    for piece in hidden.split(list(pieces) if pieces else hidden.shape[1], dim=1):
        span.forward(piece, cache)
    return cache


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [3, WINDOW_TOKENS + 1, 29])
def test_truncating_equals_never_having_seen_the_rest(family: str, kept: int, chain_of: Chains) -> None:
    span = chain_of(family, 1).spans[0]
    seen, dropped = hidden_states(span, 1, 30), hidden_states(span, 1, 30, seed=1)
    rolled_back = fed(span, torch.cat([seen[:, :kept], dropped], dim=1), (kept, *[1] * 4, 26))
    rolled_back.truncate(kept)
    fresh = fed(span, seen[:, :kept])
    for tokens in seen[:, kept:].split(1, dim=1) or (seen[:, -1:],):
        assert span.forward(tokens, rolled_back).equal(span.forward(tokens, fresh))


@pytest.mark.parametrize("family", FAMILIES)
def test_reordering_equals_rows_that_were_always_so(family: str, chain_of: Chains) -> None:
    span = chain_of(family, 1).spans[0]
    seen, new = hidden_states(span, 3, WINDOW_TOKENS + 5), hidden_states(span, 4, 1, seed=1)
    indices = torch.tensor([2, 0, 2, 1])
    reordered = fed(span, seen)
    reordered.reorder(indices)
    assert (reordered.batch_size, reordered.num_tokens) == (4, 4 * (WINDOW_TOKENS + 5))
    torch.testing.assert_close(span.forward(new, reordered), span.forward(new, fed(span, seen[indices])))


def test_repeats_and_selections_are_reorderings(chain_of: Chains) -> None:
    span = chain_of("llama", 1).spans[0]
    seen = hidden_states(span, 2, 5)
    cache = fed(span, seen)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 2, 3]))
    new = hidden_states(span, 3, 1)
    torch.testing.assert_close(span.forward(new, cache), span.forward(new, fed(span, seen[[0, 1, 1]])))


def test_growing_beyond_the_first_buffer_loses_nothing(chain_of: Chains) -> None:
    span = chain_of("mistral", 1).spans[0]
    length = 2 * CAPACITY_TOKENS_MIN + 5
    hidden = hidden_states(span, 1, length + 1)
    grown = fed(span, hidden[:, :length], (CAPACITY_TOKENS_MIN - 1, *[1] * 3, length - CAPACITY_TOKENS_MIN - 2))
    at_once = fed(span, hidden[:, :length])
    last = hidden[:, -1:]
    torch.testing.assert_close(span.forward(last, grown), span.forward(last, at_once), atol=1e-4, rtol=1e-5)


def test_a_forward_that_fails_half_way_leaves_the_cache_as_it_was(
    chain_of: Chains, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = chain_of("llama", 1).spans[0]
    seen, new = hidden_states(span, 1, 6), hidden_states(span, 1, 2, seed=1)
    cache, untouched = fed(span, seen), fed(span, seen)

    def fail(*_args: object, **_kwargs: Any) -> Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(span.layers[2], "forward", fail)
        with pytest.raises(RuntimeError):
            span.forward(hidden_states(span, 1, 2, seed=2), cache)
    assert cache.length == 6
    assert span.forward(new, cache).equal(span.forward(new, untouched))


def test_an_emptied_cache_takes_another_batch(chain_of: Chains) -> None:
    span = chain_of("llama", 1).spans[0]
    cache = fed(span, hidden_states(span, 3, 5))
    cache.reset()
    other = hidden_states(span, 2, 4)
    assert span.forward(other, cache).equal(span.forward(other, span.new_cache()))
    assert cache.num_tokens == 8


def test_impossible_lengths_and_rows_are_refused(chain_of: Chains) -> None:
    span = chain_of("llama", 1).spans[0]
    cache = fed(span, hidden_states(span, 2, 5))
    with pytest.raises(ValueError, match="holds 5 tokens and cannot be cut to 6"):
        cache.truncate(6)
    for rows in ([0, 2], [-1], []):
        with pytest.raises(ValueError, match="rows of a batch of 2"):
            cache.reorder(torch.tensor(rows, dtype=torch.long))
    assert (cache.length, cache.batch_size) == (5, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_budgets_say_what_caches_take(family: str, chain_of: Chains, source_of: Callable[[str], ModelSource]) -> None:
    span = chain_of(family, 1).spans[0]
    cache = fed(span, hidden_states(span, 2, CAPACITY_TOKENS_MIN))
    assert cache.num_tokens == 2 * CAPACITY_TOKENS_MIN
    assert cache.bytes == len(cache) * cache.num_tokens * bytes_per_token(source_of(family), torch.float32)
