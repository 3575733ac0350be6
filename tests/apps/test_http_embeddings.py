"""Embeddings through the real openai client: those of the local model, whatever shares their batch."""

import base64
import struct
from typing import Any

import numpy as np
import openai
import pytest
import torch
from openai import OpenAI
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from farflung.model.embedding import batches_of

pytestmark = pytest.mark.loopback

TEXTS = ["def main(", "class Tree:\n    pass\n" * 9, "x", "return len(arguments)"]


def local_vector(model: PreTrainedModel, tokens: list[int], pooling: str) -> list[float]:
    with torch.inference_mode():
        states_TH = model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
    pooled_H = states_TH.mean(dim=0) if pooling == "mean" else states_TH[-1]
    return (pooled_H / pooled_H.norm()).tolist()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_those_of_the_local_model(
    client: OpenAI, tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase, pooling: str
) -> None:
    answer = client.embeddings.create(model="tiny-base", input=TEXTS, extra_body={"pooling": pooling})
    expected = [local_vector(tiny_model, tiny_tokenizer.encode(text), pooling) for text in TEXTS]
    assert [one.index for one in answer.data] == [0, 1, 2, 3]
    for one, vector in zip(answer.data, expected, strict=True):
        np.testing.assert_allclose(one.embedding, vector, atol=1e-5)
    num_tokens = sum(len(tiny_tokenizer.encode(text)) for text in TEXTS)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == num_tokens


def test_numbers_and_base64_say_the_same(client: OpenAI) -> None:
    raw: Any = client.embeddings.with_raw_response
    tokens = [5, 6, 7]
    floats = raw.create(model="tiny", input=tokens, encoding_format="float").http_response.json()
    spelled = raw.create(model="tiny", input=tokens, encoding_format="base64").http_response.json()
    data = base64.b64decode(spelled["data"][0]["embedding"])
    assert floats["data"][0]["embedding"] == pytest.approx(list(struct.unpack(f"<{len(data) // 4}f", data)), abs=1e-7)
    assert len(data) // 4 == 32
    assert client.embeddings.create(model="tiny", input=[tokens, tokens], dimensions=32).usage.prompt_tokens == 6


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        ({"dimensions": 8}, "have 32 dimensions and are not cut: leave dimensions out"),
        ({"input": []}, "input is empty"),
        ({"input": ["a", ""]}, "The prompt is empty"),
        ({"input": ["x"] * 2049}, "at most 2048 texts"),
        ({"input": [99_999]}, "Token 99999 is not in the vocabulary"),
        ({"input": "x" * 25_000}, "takes at most 20000"),
        ({"model": "other"}, "There is no model other here"),
    ],
)
def test_what_cannot_be_embedded_is_refused(client: OpenAI, ask: dict[str, Any], sentence: str) -> None:
    asked: Any = {"model": "tiny", "input": "def"} | ask
    with pytest.raises(openai.APIStatusError, match=sentence):
        client.embeddings.create(**asked)


def test_batches_hold_texts_of_like_length_and_few_enough_tokens() -> None:
    lengths = [3, 100, 4, 90, 5, 1]
    batches = batches_of(lengths, 200)
    assert batches == [[5, 0, 2, 4], [3, 1]]
    assert batches_of(lengths, 16) == [[5, 0, 2], [4], [3], [1]]
    assert batches_of([], 16) == []
