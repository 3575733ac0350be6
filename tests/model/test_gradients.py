"""Gradients through frozen blocks, and deep prompts, equal those of the whole model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from farflung.model.ends import load_ends
from farflung.model.source import ModelSource
from tests.families import FAMILIES
from tests.model.local_blocks import LocalBlocks
from tests.model.reference import layers_of, random_prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_a_soft_prompt_gets_the_whole_models_gradient(
    family: str,
    whole_model: Callable[[str], PreTrainedModel],
    chain_of: Callable[[str, int], LocalBlocks],
    source_of: Callable[[str], ModelSource],
) -> None:
    ends = load_ends(source_of(family), chain_of(family, 2))
    tokens = random_prompt(2, 8)
    gradients = []
    for model in (whole_model(family), ends):
        embeddings = model.get_input_embeddings()(tokens).detach().requires_grad_(True)
        output: Any = model(inputs_embeds=embeddings, labels=tokens)
        output.loss.backward()
        gradients.append(embeddings.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)
    assert gradients[0] is not None
    assert gradients[0].abs().max() > 0


def with_prompts(model: PreTrainedModel, prompts_LPH: Tensor, tokens: Tensor) -> Tensor:
    """What leaves the whole model's last layer when each layer's first inputs have prompts added."""
    left: list[Tensor] = []

    def adding(prompt_PH: Tensor) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            prompt = nn.functional.pad(prompt_PH, (0, 0, 0, hidden.shape[1] - prompt_PH.shape[0]))
            return (
                ((hidden + prompt, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden + prompt})
            )

        return hook

    layers = layers_of(model)
    hooks = [
        layer.register_forward_pre_hook(adding(prompt), with_kwargs=True)
        for layer, prompt in zip(layers, prompts_LPH, strict=True)
    ]

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
        left.append(output[0] if isinstance(output, tuple) else output)

    hooks.append(layers[-1].register_forward_hook(leave))
    try:
        model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return left[0]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_deep_prompts_equal_prompts_added_to_every_layer(
    family: str, whole_model: Callable[[str], PreTrainedModel], chain_of: Callable[[str, int], LocalBlocks]
) -> None:
    whole, span = whole_model(family), chain_of(family, 1).spans[0]
    tokens = random_prompt(2, 10)
    entered: list[Tensor] = []
    hook = layers_of(whole)[0].register_forward_pre_hook(
        lambda _m, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    whole(tokens)
    hook.remove()
    prompts = nn.Parameter(torch.randn(span.last, 4, span.hidden_size) * 0.3)
    expected = with_prompts(whole, prompts, tokens)
    trained = span.forward_train(entered[0].detach(), prompts_LPH=prompts)
    torch.testing.assert_close(trained, expected, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(expected.square().mean(), prompts)
    torch.testing.assert_close(torch.autograd.grad(trained.square().mean(), prompts), wanted, atol=1e-6, rtol=1e-4)
    # In inference they reach only the positions they are for, wherever the pieces are cut.
    cache = span.new_cache()
    pieces = entered[0].detach().split([1, 2, 3, 4], dim=1)
    left = torch.cat([span.forward(piece, cache, prompts_LPH=prompts) for piece in pieces], dim=1)
    torch.testing.assert_close(left, expected.detach(), atol=1e-4, rtol=1e-4)
