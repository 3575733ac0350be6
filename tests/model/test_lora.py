"""LoRA adapters on blocks are those of peft: the same files, logits, losses and gradients, alone and side by side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from farflung.model.adapters import LoraAdapter
from farflung.model.load import load_span
from farflung.model.lowrank import Additions
from farflung.model.packed import pack_for_batches
from farflung.model.peft_files import CONFIG_FILE, load_adapter, save_adapter
from farflung.model.pool import CachePool
from farflung.model.source import ModelSource
from farflung.model.span import Span
from tests.loras import lora, saved_by_peft, under_peft
from tests.model.local_blocks import LocalBlocks
from tests.model.reference import layers_of, random_prompt

Whole = Callable[[str], PreTrainedModel]
Sources = Callable[[str], ModelSource]
Chains = Callable[[str, int], LocalBlocks]
FAMILIES = ["llama", "gpt2", "phi3", "gemma2", "gpt-neox", "bloom"]
TOLERANCE = 1e-5
"""Of the largest value: what the order of sums changes."""


def assert_same(actual: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, atol=TOLERANCE * scale, rtol=0)


def noting(noted: list[Tensor]) -> Callable[..., None]:
    """A hook that notes what leaves a layer."""

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        noted.append(output[0] if isinstance(output, tuple) else output)

    return note


def around_layers(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What enters and leaves the whole model's layers."""
    noted: list[Tensor] = []
    layers = layers_of(model)
    hooks = [
        layers[0].register_forward_pre_hook(
            lambda _m, args, kwargs: noted.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        ),
        layers[-1].register_forward_hook(noting(noted)),
    ]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return noted[0], noted[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_saved_here_is_what_peft_loads(
    family: str, whole_model: Whole, source_of: Sources, chain_of: Chains, tmp_path: Path
) -> None:
    source, span = source_of(family), chain_of(family, 1).spans[0]
    adapter = lora(source)
    save_adapter(adapter, tmp_path, base_name=source.name)
    whole = whole_model(family)
    entered, expected = around_layers(under_peft(whole, tmp_path), random_prompt(2, 9))
    _, plain = around_layers(whole, random_prompt(2, 9))
    assert float((expected - plain).abs().max()) > 0.1, "the adapter changes something"
    assert_same(span.forward(entered, span.new_cache(), additions=adapter.additions()), expected)
    assert_same(span.forward_train(entered, additions=adapter.additions()), expected)
    assert_same(span.forward(entered, span.new_cache()), plain)  # nothing of it stays


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": r".*\.2\.mlp\.(up|down)_proj", "lora_alpha": 3},
        {"target_modules": ["o_proj"], "layers_to_transform": [0, 3], "lora_dropout": 0.1},
    ],
)
def test_what_peft_has_saved_is_loaded_and_saved_again(
    settings: dict[str, Any], whole_model: Whole, source_of: Sources, chain_of: Chains, tmp_path: Path
) -> None:
    source, span, whole = source_of("llama"), chain_of("llama", 1).spans[0], whole_model("llama")
    adapted = saved_by_peft(whole, tmp_path / "theirs", **settings)
    entered, expected = around_layers(adapted, random_prompt(1, 7))
    adapter = load_adapter(tmp_path / "theirs", source)
    assert_same(span.forward(entered, None, additions=adapter.additions()), expected)
    save_adapter(adapter, tmp_path / "ours")
    again = under_peft(whole, tmp_path / "ours")
    assert_same(around_layers(again, random_prompt(1, 7))[1], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_peft(
    family: str, whole_model: Whole, source_of: Sources, chain_of: Chains, tmp_path: Path
) -> None:
    source, span = source_of(family), chain_of(family, 1).spans[0]
    adapter = lora(source)
    save_adapter(adapter, tmp_path)
    adapted = under_peft(whole_model(family), tmp_path, is_trainable=True)
    left: list[Tensor] = []
    hook = layers_of(adapted)[-1].register_forward_hook(noting(left))
    adapted(random_prompt(2, 6))
    hook.remove()
    left[0].square().mean().backward()
    entered, _ = around_layers(whole_model(family), random_prompt(2, 6))
    span.forward_train(entered, additions=adapter.additions()).square().mean().backward()
    theirs = dict(adapted.named_parameters())
    for block, layer in adapter.places:
        for letter, parameter in zip("AB", adapter.factors_of(block, layer), strict=True):
            expected = theirs[f"base_model.model.{adapter.layers.path}.{block}.{layer}.lora_{letter}.default.weight"]
            assert parameter.grad is not None and expected.grad is not None
            assert_same(parameter.grad, expected.grad)


def test_a_fresh_adapter_changes_nothing_and_begins_as_pefts(
    whole_model: Whole, source_of: Sources, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    theirs = saved_by_peft(whole_model("llama"), tmp_path, init_lora_weights=True, target_modules=["q_proj"])
    peft_A = next(parameter for name, parameter in theirs.named_parameters() if "lora_A" in name)
    adapter = LoraAdapter.new(source_of("llama"), rank=4, targets=["q_proj"])
    inner, outer = adapter.factors_of(0, "self_attn.q_proj")
    assert outer.abs().max() == 0 and inner.shape == peft_A.shape
    assert 0.8 < (inner.std() / peft_A.std()).item() < 1.2


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma2", "gpt-neox", "qwen3-moe"])
def test_rows_of_many_adapters_side_by_side_equal_each_alone(family: str, source_of: Sources, chain_of: Chains) -> None:
    """Prompts and single tokens, with two adapters (one of them of other layers and rank) and without any."""
    source, span = source_of(family), chain_of(family, 1).spans[0]
    assert span.can_batch
    one = lora(source, 1).additions()
    target = sorted({name for sizes in span.layer_sizes.values() for name in sizes})[0]
    other = lora(source, 2, targets=[target], rank=7, alpha=30.0, is_rank_stabilized=True).additions()
    additions: list[Additions | None] = [one, None, other, one, None]
    check_side_by_side(span, additions)


def check_side_by_side(span: Span, additions: list[Additions | None]) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 20), (1, 9), (3, 14), (1, 12), (1, 30)]
    texts = [torch.randn(*shape, span.hidden_size, generator=generator) for shape in shapes]
    pool = CachePool(span.last - span.first)
    caches = [span.new_cache(pool=pool) for _ in texts]
    left: list[list[Tensor]] = [[] for _ in texts]
    while any(cache.length < text.shape[1] for cache, text in zip(caches, texts, strict=True)):
        chosen = [index for index, text in enumerate(texts) if caches[index].length < text.shape[1]]
        sizes = [1 if caches[index].length else 5 for index in chosen]
        pieces = [
            (texts[index][:, caches[index].length : caches[index].length + size], caches[index])
            for index, size in zip(chosen, sizes, strict=True)
        ]
        outputs = span.forward_batch(pieces, additions=[additions[index] for index in chosen])
        for index, output in zip(chosen, outputs, strict=True):
            left[index].append(output)
    for text, parts, each in zip(texts, left, additions, strict=True):
        alone = span.forward(text, span.new_cache(), additions=each)
        assert_same(torch.cat(parts, dim=1), alone)
        if each is not None:
            assert float((alone - span.forward(text, span.new_cache())).abs().max()) > 0.1


def test_layers_with_packed_copies_are_added_to_as_well(source_of: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farflung.model.layout.MATRIX_BYTES_MIN", 1)
    source = source_of("llama")
    span = load_span(source, 0, 4)
    assert pack_for_batches(torch.nn.ModuleList(span.layers), lambda rows, columns: True) > 0
    one, other = lora(source, 1).additions(), lora(source, 2).additions()
    check_side_by_side(span, [one, None, other, one, None])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"peft_type": "LOHA"}, "is not LoRA"),
        ({"use_dora": True}, "use_dora = True, which is not supported"),
        ({"bias": "all"}, "bias = 'all', which is not supported"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"r": 2}, "lora_A of self_attn.q_proj in block 0 has shape"),
        ({"r": "two"}, "says no r and lora_alpha"),
    ],
)
def test_adapters_of_other_kinds_are_refused_in_a_sentence(
    change: dict[str, Any], sentence: str, source_of: Sources, tmp_path: Path
) -> None:
    save_adapter(lora(source_of("llama"), targets=["q_proj"]), tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=sentence):
        load_adapter(tmp_path, source_of("llama"))


def test_adapters_of_other_models_and_of_the_head_are_refused(
    whole_model: Whole, source_of: Sources, tmp_path: Path
) -> None:
    save_adapter(lora(source_of("gpt2")), tmp_path / "gpt2")
    with pytest.raises(ValueError, match="which is no factor of a linear layer in the blocks of llama"):
        load_adapter(tmp_path / "gpt2", source_of("llama"))
    saved_by_peft(whole_model("llama"), tmp_path / "head", target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match=r"lm_head\.lora_A\.weight"):
        load_adapter(tmp_path / "head", source_of("llama"))
    with pytest.raises(ValueError, match=CONFIG_FILE):
        load_adapter(tmp_path / "nowhere", source_of("llama"))
    with pytest.raises(ValueError, match="no linear layer of the blocks is called 'query'"):
        LoraAdapter.new(source_of("llama"), targets=["query"])
