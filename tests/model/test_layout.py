"""Matrices whose order in memory was changed compute the same, and only those that nobody else reads are changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from farflung.model import layout
from farflung.model.ends import load_ends
from farflung.model.layout import order_for_decoding
from farflung.model.source import ModelSource
from tests.model.local_blocks import load_chain
from tests.model.reference import generate, random_prompt


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MATRIX_BYTES_MIN", 0)


def always(num_rows: int, num_columns: int) -> bool:
    return True


@pytest.mark.usefixtures("every_size")
def test_a_model_in_column_order_says_the_same_and_has_the_same_gradient(
    source_of: Callable[[str], ModelSource], whole_model: Callable[[str], PreTrainedModel]
) -> None:
    source, whole = source_of("llama"), whole_model("llama")
    chain = load_chain(source, 2)
    ends = load_ends(source, chain, new_cache=chain.new_cache)
    for model in [ends, *(nn.ModuleList(span.layers) for span in chain.spans)]:
        order_for_decoding(model, always)
    changed = [
        each for span in chain.spans for layer in span.layers for each in layer.parameters() if not each.is_contiguous()
    ]
    assert len(changed) == 7 * source.num_blocks, "every matrix of attention and MLP"
    tokens = random_prompt(2, 9)
    assert torch.equal(generate(ends, tokens, max_new_tokens=12), generate(whole, tokens, max_new_tokens=12))
    gradients: list[torch.Tensor] = []
    for model in (whole, ends):
        embeddings = model.get_input_embeddings()(tokens).detach().requires_grad_(True)
        output: Any = model(inputs_embeds=embeddings, labels=tokens)
        output.loss.backward()
        assert embeddings.grad is not None
        gradients.append(embeddings.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


@pytest.mark.usefixtures("every_size")
def test_what_is_read_by_rows_elsewhere_or_is_no_plain_matrix_stays() -> None:
    tied, embedding = nn.Linear(4, 6, bias=False), nn.Embedding(6, 4)
    embedding.weight = tied.weight
    alone = nn.Linear(4, 6)
    before = alone.weight.clone()
    model = nn.ModuleList([tied, embedding, nn.Linear(4, 6, dtype=torch.bfloat16), alone])
    order_for_decoding(model, always)
    assert [each for each in model.parameters() if not each.is_contiguous()] == [alone.weight]
    assert torch.equal(alone.weight, before)


def test_each_shape_is_asked_about_once_and_small_matrices_are_not() -> None:
    asked: list[tuple[int, int]] = []

    def is_faster_by_column(num_rows: int, num_columns: int) -> bool:
        asked.append((num_rows, num_columns))
        return num_rows > num_columns

    layers = [nn.Linear(1024, 512), nn.Linear(512, 1024), nn.Linear(512, 1024), nn.Linear(8, 8)]
    order_for_decoding(nn.ModuleList(layers), is_faster_by_column)
    assert asked == [(512, 1024), (1024, 512)]
    assert [each.weight.is_contiguous() for each in layers] == [True, False, False, True]
