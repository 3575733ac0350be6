"""Only a span's own tensors are read, from whole or sharded checkpoints; what does not fit is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from farflung.model import load
from farflung.model.ends import load_ends
from farflung.model.load import load_span
from farflung.model.source import ModelSource
from tests.families import FAMILIES, save_family
from tests.model.local_blocks import LocalBlocks


@pytest.fixture
def read_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors that have been read, as they are."""
    names: list[str] = []

    class Watched:
        def __init__(self, path: str, **options: Any) -> None:
            self.file = safe_open(path, **options)

        def __enter__(self) -> "Watched":
            self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def get_slice(self, name: str) -> Any:
            on_disk = self.file.get_slice(name)

            class WatchedSlice:
                def __getitem__(self, index: Any) -> torch.Tensor:
                    names.append(name)
                    return on_disk[index]

            return WatchedSlice()

    monkeypatch.setattr(load, "safe_open", Watched)
    return names


@pytest.mark.parametrize("family", FAMILIES)
def test_a_span_reads_its_own_tensors_once_and_no_others(
    family: str, source_of: Callable[[str], ModelSource], read_names: list[str]
) -> None:
    source = source_of(family)
    load_span(source, 1, 2)
    own = [name for name in source.weight_map if ".1." in name.replace("experts.1.", "")]
    assert sorted(read_names) == sorted(own)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ends_read_no_block(family: str, source_of: Callable[[str], ModelSource], read_names: list[str]) -> None:
    source = source_of(family)
    load_ends(source, lambda hidden_BTH, **_given: hidden_BTH)
    outside = [name for name in source.weight_map if not any(f".{number}." in name for number in range(5))]
    assert sorted(read_names) == sorted(outside)


def test_a_sharded_checkpoint_gives_the_same_blocks_from_the_shards_they_are_in(
    tmp_path: Path, chain_of: Callable[[str, int], LocalBlocks], source_of: Callable[[str], ModelSource]
) -> None:
    source = ModelSource.open(str(save_family("qwen3-moe", tmp_path, max_shard_size="40KB")))
    assert len({*source.weight_map.values()}) > 3
    needed = {source.weight_map[name] for name in source.weight_map if ".layers.2." in name}
    for shard in {*source.weight_map.values()} - needed:
        (tmp_path / shard).unlink()
    hidden = torch.randn(1, 7, 32)
    whole = chain_of("qwen3-moe", 1).spans[0]
    assert load_span(source, 2, 3).forward(hidden, None).equal(whole.forward(hidden, None, first=2, last=3))


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> ModelSource:
    """A small Llama whose tensors have been tampered with."""
    save_family("llama", folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return ModelSource.open(str(folder))


def test_tensors_that_are_missing_extra_or_misshapen_are_named(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.1.mlp.side_proj.weight"] = torch.zeros(2)
        tensors["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(3, 32)

    source = changed(tmp_path, change)
    with pytest.raises(ValueError, match="download or save the model again") as refusal:
        load_span(source, 0, 2)
    for part in (
        "lacks layers.1.mlp.up_proj.weight",
        "has no use for model.layers.1.mlp.side_proj.weight",
        "has another shape for layers.1.self_attn.k_proj.weight",
    ):
        assert part in str(refusal.value)
    load_span(source, 0, 1)
    load_span(source, 2, 4)
    load_ends(source, lambda hidden_BTH, **_given: hidden_BTH)


def test_missing_embeddings_are_named(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.embed_tokens.weight"]

    source = changed(tmp_path, change)
    with pytest.raises(ValueError, match=r"lacks model\.embed_tokens\.weight"):
        load_ends(source, lambda hidden_BTH, **_given: hidden_BTH)


def test_old_checkpoints_may_hold_rotary_frequencies(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    span = load_span(changed(tmp_path, change), 0, 4)
    assert span.forward(torch.randn(1, 3, 32), None).isfinite().all()


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (2, 2), (3, 2), (0, 5)])
def test_blocks_out_of_range_are_refused(first: int, last: int, source_of: Callable[[str], ModelSource]) -> None:
    with pytest.raises(ValueError, match=f"{first}:{last} is no range of them"):
        load_span(source_of("llama"), first, last)


def test_a_base_models_checkpoint_without_prefix_loads_too(
    tmp_path: Path, chain_of: Callable[[str, int], LocalBlocks]
) -> None:
    """Some repositories hold the model below the head, whose tensors lack the prefix."""
    save_family("gpt2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    stripped = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(stripped, tmp_path / "model.safetensors", metadata={"format": "pt"})
    span = load_span(ModelSource.open(str(tmp_path)), 1, 3)
    hidden = torch.randn(1, 4, 32)
    assert span.forward(hidden, None).equal(chain_of("gpt2", 1).spans[0].forward(hidden, None, first=1, last=3))


def test_index_entries_are_read_as_they_stand(tmp_path: Path) -> None:
    folder = save_family("llama", tmp_path, max_shard_size="30KB")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(ValueError, match="names no tensors"):
        ModelSource.open(str(folder))
