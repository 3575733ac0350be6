"""Sessions computed side by side say what each says alone, whatever their lengths, chunks, prefixes and families."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from farflung.model.cache import SpanCache
from farflung.model.pages import PAGE_TOKENS, OutOfPages, PageBudget
from farflung.model.pool import CachePool
from farflung.model.span import Span
from tests.families import FAMILIES
from tests.model.local_blocks import LocalBlocks

Chains = Callable[[str, int], LocalBlocks]
COMPUTED_ONE_BY_ONE = ("bloom", "mpt")
"""Families whose attention is not taken from the registry."""
TOLERANCE = 1e-5
"""Of the largest value: what the order of sums changes."""


def hidden_states(span: Span, num_rows: int, num_tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, num_tokens, span.hidden_size, generator=torch.Generator().manual_seed(seed))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, atol=TOLERANCE * scale, rtol=0)


class Sessions:
    """Texts of several sessions that go through a span in pieces of random lengths, side by side."""

    def __init__(self, span: Span, seed: int, shapes: list[tuple[int, int]]) -> None:
        self.span = span
        self.random = random.Random(seed)
        self.pool = CachePool(span.last - span.first)
        self.texts = [hidden_states(span, *shape, seed=seed + number) for number, shape in enumerate(shapes)]
        self.caches = [span.new_cache(pool=self.pool, num_tokens_expected=text.shape[1]) for text in self.texts]
        self.left: list[list[Tensor]] = [[] for _ in shapes]

    def step(self) -> bool:
        """One batch of some of those that are not done; False when all are."""
        waiting = [index for index, text in enumerate(self.texts) if self.caches[index].length < text.shape[1]]
        chosen = [index for index in waiting if self.random.random() < 0.7] or waiting
        pieces: list[tuple[Tensor, SpanCache]] = []
        for index in chosen:
            start = self.caches[index].length
            num_new = self.random.choice([1, 1, 1, 2, 7, 19])
            pieces.append((self.texts[index][:, start : start + num_new], self.caches[index]))
        if not pieces:
            return False
        for index, left in zip(chosen, self.span.forward_batch(pieces), strict=True):
            self.left[index].append(left)
        return True


@pytest.mark.parametrize("family", FAMILIES)
def test_sessions_side_by_side_equal_each_alone(family: str, chain_of: Chains) -> None:
    span = chain_of(family, 1).spans[0]
    assert span.can_batch == (family not in COMPUTED_ONE_BY_ONE)
    if not span.can_batch:
        return
    sessions = Sessions(span, 3, [(1, 40), (1, 3), (3, 33), (1, 70)])
    while sessions.step():
        pass
    for text, left in zip(sessions.texts, sessions.left, strict=True):
        assert_same(torch.cat(left, dim=1), span.forward(text, span.new_cache()))


def test_a_batch_goes_through_a_part_of_a_span(chain_of: Chains) -> None:
    span = chain_of("llama", 1).spans[0]
    pool = CachePool(2)
    texts = [hidden_states(span, 1, 5), hidden_states(span, 1, 1, seed=1)]
    pieces = [(text, span.new_cache(1, 3, pool=pool)) for text in texts]
    for text, left in zip(texts, span.forward_batch(pieces, first=1, last=3), strict=True):
        assert_same(left, span.forward(text, span.new_cache(1, 3), first=1, last=3))


def test_known_prefixes_are_taken_over_and_outlive_their_sessions(chain_of: Chains) -> None:
    span = chain_of("llama", 1).spans[0]
    pool = CachePool(span.last - span.first)
    prefix = hidden_states(span, 1, 2 * PAGE_TOKENS + 5)
    first = span.new_cache(pool=pool)
    assert first.adopt(prefix[0]) is None
    left = span.forward(prefix, first)
    first.remember(prefix[0], left[0])
    del first
    for number in range(3):
        text = torch.cat([prefix, hidden_states(span, 1, 20, seed=number + 1)], dim=1)
        cache = span.new_cache(pool=pool)
        known = cache.adopt(text[0])
        assert known is not None and known.equal(left[0, : 2 * PAGE_TOKENS])
        assert cache.length == 2 * PAGE_TOKENS
        rest = text[:, cache.length :]
        own = torch.cat([span.forward_batch([(token, cache)])[0] for token in rest.split(1, dim=1)], dim=1)
        expected = span.forward(text, span.new_cache())[:, 2 * PAGE_TOKENS :]
        assert_same(own, expected)
    other = span.new_cache(pool=pool)
    assert other.adopt(torch.cat([prefix[0, 1:], prefix[0, :1]])) is None


def test_a_prefix_that_comes_in_pieces_of_pages_is_taken_over_piece_by_piece(chain_of: Chains) -> None:
    span = chain_of("llama", 1).spans[0]
    pool = CachePool(span.last - span.first)
    text = hidden_states(span, 1, 4 * PAGE_TOKENS + 3)
    first = span.new_cache(pool=pool)
    first.adopt(text[0])
    left = span.forward(text, first)
    first.remember(text[0], left[0])
    cache = span.new_cache(pool=pool)
    for start in (0, 2 * PAGE_TOKENS):
        cache.expect(1, 2 * PAGE_TOKENS)  # as if it were to be computed
        known = cache.adopt(text[0, start : start + 2 * PAGE_TOKENS])
        assert known is not None and known.equal(left[0, start : start + 2 * PAGE_TOKENS])
    assert cache.length == 4 * PAGE_TOKENS
    rest = text[:, cache.length :]
    assert_same(span.forward(rest, cache), left[:, -3:])
    assert cache.adopt(text[0, :PAGE_TOKENS]) is None, "it is not at the end of a page"


def test_what_decoding_adds_to_a_prefix_is_known_as_well(chain_of: Chains) -> None:
    span = chain_of("llama", 1).spans[0]
    pool = CachePool(span.last - span.first)
    text = hidden_states(span, 1, PAGE_TOKENS + 4)
    cache = span.new_cache(pool=pool)
    cache.adopt(text[0, :7])
    for piece in text.split([7] + [1] * (PAGE_TOKENS - 3), dim=1):
        cache.remember(piece[0], span.forward(piece, cache)[0])
    assert span.new_cache(pool=pool).adopt(text[0]) is not None


def test_a_shared_page_is_never_written_to(chain_of: Chains) -> None:
    span = chain_of("llama", 1).spans[0]
    pool = CachePool(span.last - span.first)
    text = hidden_states(span, 1, PAGE_TOKENS)
    cache = span.new_cache(pool=pool)
    cache.adopt(text[0])
    cache.remember(text[0], span.forward(text, cache)[0])
    cache.truncate(PAGE_TOKENS - 3)
    span.forward(hidden_states(span, 1, 3, seed=1), cache)
    again = span.new_cache(pool=pool)
    assert again.adopt(text[0]) is not None
    new = hidden_states(span, 1, 1, seed=2)
    expected = span.forward(torch.cat([text, new], dim=1), span.new_cache())[:, -1:]
    assert_same(span.forward(new, again), expected)


def test_a_pool_gives_no_more_than_it_has_and_prefixes_before_it_refuses(chain_of: Chains) -> None:
    span = chain_of("llama", 1).spans[0]
    pool = CachePool(4, PageBudget(4 * 4))
    text = hidden_states(span, 1, 2 * PAGE_TOKENS)
    known = span.new_cache(pool=pool)
    known.adopt(text[0])
    known.remember(text[0], span.forward(text, known)[0])
    held = span.new_cache(pool=pool)
    span.forward(hidden_states(span, 1, 2 * PAGE_TOKENS, seed=1), held)
    other = span.new_cache(pool=pool)
    with pytest.raises(OutOfPages):
        span.forward(hidden_states(span, 1, 1, seed=2), other)
    assert (other.length, held.length, len(pool.prefixes)) == (0, 2 * PAGE_TOKENS, 2)
    del known
    span.forward(hidden_states(span, 1, 1, seed=2), other)
    assert len(pool.prefixes) < 2 and pool.pages.num_held <= 4
