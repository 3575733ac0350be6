"""The client's half is a real transformers model: everything that generate can do gives what the whole model gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, PreTrainedModel, TextStreamer
from transformers.cache_utils import Cache

from farflung.model.ends import load_ends
from farflung.model.source import ModelSource
from tests.families import FAMILIES
from tests.model.local_blocks import LocalBlocks, LocalCache
from tests.model.reference import generate, random_prompt

Wholes = Callable[[str], PreTrainedModel]
Ends = Callable[[str], PreTrainedModel]

WAYS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.95},
    "beams": {"num_beams": 4, "length_penalty": 0.5},
    "sampled-beams": {"num_beams": 3, "do_sample": True},
    "several-answers": {"do_sample": True, "num_return_sequences": 3},
    "prompt-lookup": {"prompt_lookup_num_tokens": 3},
    "repetition-penalty": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "no-cache": {"use_cache": False, "max_new_tokens": 6},
    "prefill-in-chunks": {"prefill_chunk_size": 4},
}


@pytest.fixture(scope="session")
def ends_of(source_of: Callable[[str], ModelSource], chain_of: Callable[[str, int], LocalBlocks]) -> Ends:
    def load(family: str) -> PreTrainedModel:
        blocks = chain_of(family, 2)
        return load_ends(source_of(family), blocks, new_cache=blocks.new_cache)

    return load


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_generating_equals_the_whole_model(
    family: str, way: str, whole_model: Wholes, ends_of: Ends
) -> None:
    options = {"max_new_tokens": 20, **WAYS[way]}
    prompt = random_prompt(1, 9).repeat(1, 2)  # said twice, so that looking it up finds something
    texts = []
    for model in (whole_model(family), ends_of(family)):
        torch.manual_seed(1)
        texts.append(generate(model, prompt, **options))
    assert texts[1].equal(texts[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_beams_equal_the_whole_model(family: str, whole_model: Wholes, ends_of: Ends) -> None:
    prompt = random_prompt(3, 9)
    mask = torch.ones_like(prompt)
    mask[0, :4] = mask[2, :2] = 0
    options = {"num_beams": 3, "max_new_tokens": 16}
    expected = generate(whole_model(family), prompt, mask, **options)
    assert generate(ends_of(family), prompt, mask, **options).equal(expected)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_an_assistant_model_equals_the_whole_model(family: str, whole_model: Wholes, ends_of: Ends) -> None:
    prompt = random_prompt(1, 9)
    expected = generate(whole_model(family), prompt, max_new_tokens=24)
    for assistant in (whole_model("llama-tied"), whole_model(family)):
        assert generate(ends_of(family), prompt, assistant_model=assistant, max_new_tokens=24).equal(expected)


def test_streamers_get_every_token(ends_of: Ends) -> None:
    seen: list[int] = []

    class Collector(TextStreamer):
        def __init__(self) -> None: ...

        def put(self, value: torch.Tensor) -> None:
            seen.extend(value.flatten().tolist())

        def end(self) -> None:
            seen.append(-1)

    prompt = random_prompt(1, 5)
    tokens = generate(ends_of("llama"), prompt, streamer=Collector(), max_new_tokens=7)
    assert seen == [*tokens[0].tolist(), -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_loss_equal_the_whole_model(family: str, whole_model: Wholes, ends_of: Ends) -> None:
    prompt = random_prompt(2, 11)
    with torch.no_grad():
        expected: Any = whole_model(family)(prompt, labels=prompt)
        given: Any = ends_of(family)(prompt, labels=prompt)
    torch.testing.assert_close(given.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(given.loss, expected.loss)


def test_a_cache_that_is_given_goes_on_across_calls(whole_model: Wholes, ends_of: Ends) -> None:
    ends: Any = ends_of("llama")
    cache = ends._new_cache()
    prompt = random_prompt(1, 6)
    first = generate(ends, prompt, past_key_values=cache, max_new_tokens=5)
    assert cache.get_seq_length() == first.shape[1] - 1
    longer = torch.cat([first, random_prompt(1, 3, seed=4)], dim=1)
    second = generate(ends, longer, past_key_values=cache, max_new_tokens=5)
    assert second.equal(generate(whole_model("llama"), longer, max_new_tokens=5))


def test_only_what_carries_something_reaches_the_blocks(source_of: Callable[[str], ModelSource]) -> None:
    """Positions that count on and masks that hide nothing need not be sent anywhere."""
    calls: list[dict[str, Any]] = []

    def blocks(hidden_BTH: torch.Tensor, **given: Any) -> torch.Tensor:
        calls.append(given)
        return hidden_BTH

    class Counting(LocalCache):
        def __init__(self) -> None:
            Cache.__init__(self, layers=[])

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return 4

        def __len__(self) -> int:
            return 1

    ends = load_ends(source_of("llama"), blocks, new_cache=Counting)
    cache = Counting()
    tokens = random_prompt(2, 3)
    plain = torch.arange(4, 7).repeat(2, 1)
    padded = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    ends(tokens, attention_mask=torch.ones(2, 7), position_ids=plain, past_key_values=cache, use_cache=True)
    ends(tokens, attention_mask=padded, position_ids=plain - 1, past_key_values=cache, use_cache=True)
    ends(tokens, use_cache=False)
    nothing = {"position_ids_BT": None, "attention_mask_BS": None}
    assert calls[0] == {**nothing, "past_key_values": cache, "use_cache": True}
    assert calls[1]["attention_mask_BS"].equal(padded)
    assert calls[1]["position_ids_BT"].equal(plain - 1)
    assert calls[2] == {**nothing, "past_key_values": None, "use_cache": False}


def test_it_is_an_instance_of_the_family(whole_model: Wholes, ends_of: Ends) -> None:
    ends, whole = ends_of("qwen3"), whole_model("qwen3")
    assert isinstance(ends, type(whole))
    assert isinstance(ends, GenerationMixin)
    assert ends.generation_config.to_dict() == whole.generation_config.to_dict()
    assert sum(weight.numel() for weight in ends.parameters()) == (2 * 199 + 1) * 32


def test_what_only_the_blocks_know_is_refused(ends_of: Ends) -> None:
    with pytest.raises(ValueError, match="hidden states and attentions are not here"):
        ends_of("llama")(random_prompt(1, 3), output_hidden_states=True)
    with pytest.raises(ValueError, match="must be two-dimensional"):
        ends_of("llama")(random_prompt(1, 3), attention_mask=torch.ones(1, 1, 3, 3))
