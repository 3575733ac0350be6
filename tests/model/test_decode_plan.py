"""The short way of decoding equals asking the family's own forward, and gives way to it where it cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedConfig

from farflung.model import decode
from farflung.model.ends import load_ends
from farflung.model.source import ModelSource
from farflung.model.span import Span
from tests.families import FAMILIES, GROUPED
from tests.model.local_blocks import LocalBlocks, load_chain
from tests.model.reference import generate, random_prompt

ASKED_ALWAYS = ("bloom", "mpt")
"""Families whose layers get something else for every length: biases by distance."""


def decoded(span: Span, hidden: Tensor, start: int, *, asks_the_family: bool) -> Tensor:
    """Prefill up to `start`, then one token at a time; positions that are given are never decoded by the plan."""
    cache = span.new_cache()
    outputs = [span.forward(hidden[:, :start], cache)]
    for position in range(start, hidden.shape[1]):
        ids = torch.full((hidden.shape[0], 1), position) if asks_the_family else None
        outputs.append(span.forward(hidden[:, position : position + 1], cache, position_ids_BT=ids))
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_equals_the_family_before_and_after_windows_and_stretches(
    family: str, chain_of: Callable[[str, int], LocalBlocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "STRETCH_TOKENS", 16)
    span = chain_of(family, 1).spans[0]
    span.probe()  # forget stretches of the usual length
    hidden = torch.randn(2, 40, span.hidden_size)
    short = decoded(span, hidden, 5, asks_the_family=False)
    assert span.plan is not None
    is_short = family not in ASKED_ALWAYS
    assert [span.plan.knows(position) for position in (5, 17, 39)] == [is_short] * 3
    assert short.equal(decoded(span, hidden, 5, asks_the_family=True))
    monkeypatch.undo()
    span.probe()


SCALED: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "dynamic": (LlamaConfig, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}),
    "linear": (LlamaConfig, {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "longrope": (
        Phi3Config,
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [1.0, 2.0, 3.0, 4.0],
                "original_max_position_embeddings": 24,
            },
            "original_max_position_embeddings": 24,
        },
    ),
}


@pytest.mark.parametrize("num_prompt", [9, 30])
@pytest.mark.parametrize("scaling", SCALED)
def test_rotary_scaling_that_changes_with_length_equals_the_whole_model(
    scaling: str, num_prompt: int, tmp_path: Path
) -> None:
    family, options = SCALED[scaling]
    context = {"max_position_embeddings": 24} if scaling == "dynamic" else {}
    torch.manual_seed(0)
    config = family(**{**GROUPED, **context, **options}, num_hidden_layers=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for weight in whole.parameters():
        weight.data = weight.data.clone()
    source = ModelSource.open(str(tmp_path))
    blocks = load_chain(source, 1)
    span = blocks.spans[0]
    span.forward(torch.randn(1, 60, span.hidden_size), span.new_cache())  # must not reach into the next session
    ends = load_ends(source, blocks, new_cache=blocks.new_cache)
    prompt = random_prompt(1, num_prompt)
    assert generate(ends, prompt, max_new_tokens=40).equal(generate(whole, prompt, max_new_tokens=40))
    assert span.plan is not None
    assert span.plan.knows(40) == (scaling == "linear"), "what changes with length is not looked up by position"
