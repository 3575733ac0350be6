"""A model is opened from a folder or the Hub, told apart from its variants, or refused with a sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, MambaConfig, PreTrainedConfig, T5Config

from farflung.model.budget import block_bytes
from farflung.model.cut import build_skeleton
from farflung.model.load import load_span
from farflung.model.source import TOKENS_UNLIMITED, ModelSource
from tests.families import FAMILIES, save_family


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_source_says_of_a_model(family: str, source_of: Callable[[str], ModelSource]) -> None:
    source, config = source_of(family), FAMILIES[family]()
    assert source.name == family
    assert source.num_blocks == config.num_hidden_layers
    assert source.hidden_size == 32
    assert source.context_length_max == (TOKENS_UNLIMITED if family in ("bloom", "mpt") else 512)
    assert source.dtype == torch.float32
    span = load_span(source, 0, source.num_blocks)
    largest = max(sum(weight.nbytes for weight in layer.parameters()) for layer in span.layers)
    assert block_bytes(source, torch.float32) == largest
    assert block_bytes(source, torch.bfloat16) * 2 == largest


def test_the_checkpoints_type_is_read_from_a_tensor_where_the_configuration_is_silent(tmp_path: Path) -> None:
    folder = save_family("llama", tmp_path)
    edit_config(folder, dtype=None)
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert ModelSource.open(str(folder)).dtype == torch.float16


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_fingerprints_tell_variants_apart_but_not_copies(tmp_path: Path) -> None:
    def fingerprint(name: str) -> str:
        return ModelSource.open(str(tmp_path / name)).fingerprint

    original = save_family("llama", tmp_path / "original")
    save_family("llama", tmp_path / "sharded", max_shard_size="30KB")
    edit_config(save_family("llama", tmp_path / "resaved"), transformers_version="4.0.0", _name_or_path="elsewhere")
    edit_config(save_family("llama", tmp_path / "reconfigured"), rms_norm_eps=1e-3)
    save_family("llama-tied", tmp_path / "other")
    tensors = load_file(original / "model.safetensors")
    tensors["model.layers.3.mlp.down_proj.weight"] += 0.01
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "config.json").write_text((original / "config.json").read_text())
    save_file(tensors, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint("original") == fingerprint("sharded") == fingerprint("resaved")
    assert len({fingerprint(name) for name in ("original", "reconfigured", "other", "tuned")}) == 4


@pytest.mark.parametrize("model", ["", "./nowhere", "/no/such/folder", "~/model", "a/b/c"])
def test_a_path_that_is_not_there_is_refused(model: str) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        ModelSource.open(model)


@pytest.mark.parametrize("model", ["someone/some-model-that-is-not-cached", "not a name!"])
def test_a_name_that_the_hub_does_not_give_is_refused(model: str) -> None:
    with pytest.raises(ValueError, match="neither a folder here nor a model that the Hub gives us"):
        ModelSource.open(model)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(ValueError, match="there is no folder"):
        ModelSource.open(str(tmp_path / "model"))


def test_folders_without_configuration_or_with_a_broken_one_are_refused(tmp_path: Path) -> None:
    for content in (None, "{", '{"model_type": "no-such-family"}', "{}"):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match="has no configuration that transformers can read"):
            ModelSource.open(str(tmp_path))


def test_a_model_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = save_family("llama", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors .*save_pretrained"):
        ModelSource.open(str(folder))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config(num_layers=1), "not a causal language model"),
        (MambaConfig(num_hidden_layers=2), "state cannot be rolled back"),
    ],
    ids=["encoder-decoder", "recurrent"],
)
def test_families_that_cannot_be_cut_are_refused(config: PreTrainedConfig, reason: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        ModelSource.open(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "is quantized"),
        ({"num_kv_shared_layers": 2}, "read each other's attention cache"),
        ({"layer_types": ["full_attention", "linear_attention"] * 2}, "state cannot be rolled back"),
    ],
    ids=["quantized", "shared-cache", "hybrid"],
)
def test_variants_that_cannot_be_cut_are_refused(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    edit_config(save_family("llama", tmp_path), **change)
    with pytest.raises(ValueError, match=reason):
        ModelSource.open(str(tmp_path))


def test_layers_that_look_both_ways_are_refused(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="look at later tokens too"):
        build_skeleton(ModelSource.open(str(tmp_path)), torch.float32)


def test_a_hub_model_is_opened_from_what_was_downloaded(
    tmp_path: Path, source_of: Callable[[str], ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's own cache, laid out as a download leaves it, with one shard missing: only that one would be fetched."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--small-llama"
    snapshot = save_family("llama", repository / "snapshots" / commit, max_shard_size="30KB")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = ModelSource.open("someone/small-llama")
    assert (source.name, source.fingerprint, source.num_blocks) == ("someone/small-llama", commit, 4)
    here = {source.weight_map[name] for name in source.weight_map if ".layers.1." in name}
    for shard in {*source.weight_map.values()} - here:
        (snapshot / shard).unlink()
    hidden = torch.randn(1, 3, 32)
    local = load_span(source_of("llama"), 1, 2)
    assert load_span(source, 1, 2).forward(hidden, None).equal(local.forward(hidden, None))
    with pytest.raises(ValueError, match=r"cannot be had .* connect, or"):
        load_span(source, 3, 4)
