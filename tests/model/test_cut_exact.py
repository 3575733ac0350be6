"""A model cut into spans computes what the whole model computes, for every family."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from farflung.model.ends import load_ends
from farflung.model.load import load_span
from farflung.model.source import ModelSource
from tests.families import FAMILIES
from tests.model.local_blocks import LocalBlocks
from tests.model.reference import generate, greedy_record, random_prompt

NUM_NEW = 64
TOLERANCE = 1e-5


@pytest.mark.parametrize("num_spans", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_greedy_tokens_equal_the_whole_model(
    family: str,
    num_spans: int,
    whole_model: Callable[[str], PreTrainedModel],
    chain_of: Callable[[str, int], LocalBlocks],
    source_of: Callable[[str], ModelSource],
) -> None:
    blocks = chain_of(family, num_spans)
    record = greedy_record(whole_model(family), random_prompt(1, 9), NUM_NEW)
    caches = [span.new_cache() for span in blocks.spans]
    for entered, left in zip(record.entered, record.left, strict=True):
        hidden = entered
        for span, cache in zip(blocks.spans, caches, strict=True):
            hidden = span.forward(hidden, cache)
        torch.testing.assert_close(hidden, left, atol=TOLERANCE, rtol=0)
    ends = load_ends(source_of(family), blocks, new_cache=blocks.new_cache)
    assert generate(ends, random_prompt(1, 9), max_new_tokens=NUM_NEW).equal(record.tokens)
    assert len(set(record.tokens[0].tolist())) > 5, "a text that repeats itself would hide mistakes"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_left_padded_batch_equals_its_rows_one_by_one(
    family: str, chain_of: Callable[[str, int], LocalBlocks], source_of: Callable[[str], ModelSource]
) -> None:
    blocks = chain_of(family, 2)
    ends = load_ends(source_of(family), blocks, new_cache=blocks.new_cache)
    prompts = [random_prompt(1, length, seed=length) for length in (4, 9, 6)]
    mask = torch.stack([(torch.arange(9) >= 9 - prompt.shape[1]).long() for prompt in prompts])
    batch = torch.zeros(3, 9, dtype=torch.long)
    for row, prompt in zip(batch, prompts, strict=True):
        row[9 - prompt.shape[1] :] = prompt[0]
    together = generate(ends, batch, mask, max_new_tokens=24)
    for row, prompt in zip(together, prompts, strict=True):
        alone = generate(ends, prompt, max_new_tokens=24)
        assert row[9 - prompt.shape[1] :].equal(alone[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_of_a_span_equals_a_span_of_that_part(
    family: str, chain_of: Callable[[str, int], LocalBlocks], source_of: Callable[[str], ModelSource]
) -> None:
    whole = chain_of(family, 1).spans[0]
    part = load_span(source_of(family), 1, whole.last)
    hidden = torch.randn(2, 20, whole.hidden_size)
    caches = whole.new_cache(1, whole.last), part.new_cache()
    for tokens in (hidden[:, :14], hidden[:, 14:15], hidden[:, 15:]):
        left = whole.forward(tokens, caches[0], first=1, last=whole.last)
        assert left.equal(part.forward(tokens, caches[1]))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_forward_without_cache_equals_forward_with_it(family: str, chain_of: Callable[[str, int], LocalBlocks]) -> None:
    span = chain_of(family, 1).spans[0]
    hidden = torch.randn(1, 30, span.hidden_size)
    torch.testing.assert_close(span.forward(hidden, None), span.forward(hidden, span.new_cache()))


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_held_and_returned(
    family: str,
    dtype: torch.dtype,
    source_of: Callable[[str], ModelSource],
    chain_of: Callable[[str, int], LocalBlocks],
) -> None:
    span = load_span(source_of(family), 1, 3, dtype=dtype)
    full = chain_of(family, 1).spans[0]
    hidden = torch.randn(1, 8, span.hidden_size)
    left = span.forward(hidden, span.new_cache())
    assert left.dtype == dtype
    assert span.bytes == dtype.itemsize * sum(weight.numel() for layer in span.layers for weight in layer.parameters())
    expected = full.forward(hidden, full.new_cache(1, 3), first=1, last=3)
    assert torch.nn.functional.cosine_similarity(left.float().flatten(), expected.flatten(), dim=0) > 0.99


def test_shapes_that_do_not_fit_are_refused(chain_of: Callable[[str, int], LocalBlocks]) -> None:
    first, second = chain_of("llama", 2).spans
    cache = first.new_cache()
    with pytest.raises(ValueError, match=r"send \[batch, tokens, 32\]"):
        first.forward(torch.zeros(1, 3, 31), cache)
    with pytest.raises(ValueError, match="holds blocks 0:2, not 1:3"):
        first.forward(torch.zeros(1, 3, 32), cache, first=1, last=3)
    with pytest.raises(ValueError, match="the cache is of blocks 0:2"):
        second.forward(torch.zeros(1, 3, 32), cache)
    with pytest.raises(ValueError, match=r"positions have shape \(1, 2\)"):
        first.forward(torch.zeros(1, 3, 32), cache, position_ids_BT=torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"type torch\.float32: send 64-bit integers"):
        first.forward(torch.zeros(1, 3, 32), cache, position_ids_BT=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"the attention mask has shape \(2, 3\)"):
        first.forward(torch.zeros(1, 3, 32), cache, attention_mask_BS=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"deep prompts have shape \(1, 2, 32\)"):
        first.forward(torch.zeros(1, 3, 32), cache, prompts_LPH=torch.zeros(1, 2, 32))
    first.forward(torch.zeros(2, 3, 32), cache)
    with pytest.raises(ValueError, match="holds a batch of 2 and was given 1"):
        first.forward(torch.zeros(1, 1, 32), cache)
    assert cache.length == 3
