"""LoRA adapters in the two files of peft's format, which anyone's `peft` loads and saves."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from farflung.model.adapters import BlockLayers, LoraAdapter
from farflung.model.source import ModelSource

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before a model's own names."""
UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "layer_replication",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
"""Settings of peft under which an adapter is more, or other, than two factors for each layer."""
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Ways of drawing the first factors that leave the model's own weights alone."""


def load_adapter(folder: Path, source: ModelSource) -> LoraAdapter:
    """Read an adapter for this model, its factors as float32.

    Raises:
        ValueError: files that are missing or cannot be read, an adapter of another kind, of another model, or of
            layers outside of the blocks.
    """
    config = _read_config(folder)
    try:
        tensors = load_file(folder / TENSORS_FILE)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} has no {TENSORS_FILE} that can be read ({error}): save the adapter again") from None
    layers = BlockLayers.of(source)
    found = {name: _place(name, layers, folder, source) for name in tensors}
    places = sorted({(block, layer) for block, layer, _ in found.values()})
    adapter = LoraAdapter(
        layers,
        places,
        rank=config["r"],
        alpha=config["lora_alpha"],
        is_rank_stabilized=bool(config.get("use_rslora")),
    )
    by_place = {place: tensors[name] for name, place in found.items()}
    for block, layer in places:
        for letter, parameter in zip("AB", adapter.factors_of(block, layer), strict=True):
            tensor = by_place.get((block, layer, letter))
            if tensor is None or tensor.shape != parameter.shape:
                has = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
                raise ValueError(
                    f"lora_{letter} of {layer} in block {block} {has} in {folder}, and {tuple(parameter.shape)} is "
                    f"needed for {source.name}: give an adapter of this model"
                )
            parameter.data.copy_(tensor)
    return adapter


def save_adapter(adapter: LoraAdapter, folder: Path, *, base_name: str = "") -> None:
    """Write both files; `base_name`: what the model is called."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for block, layer in adapter.places:
        for letter, parameter in zip("AB", adapter.factors_of(block, layer), strict=True):
            name = f"{PREFIX}{adapter.layers.path}.{block}.{layer}.lora_{letter}.weight"
            tensors[name] = parameter.detach().cpu().contiguous()
    (folder / TENSORS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "target_modules": _targets(adapter),
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "use_rslora": adapter.is_rank_stabilized,
        "fan_in_fan_out": adapter.layers.is_transposed,
        "bias": "none",
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1), encoding="utf-8")


def _targets(adapter: LoraAdapter) -> list[str]:
    """Names within blocks, if all that are called so are adapted; else the whole names."""
    chosen = sorted({name for _, name in adapter.places})
    alike = [(block, name) for block, sizes in enumerate(adapter.layers.sizes) for name in sizes if name in chosen]
    if sorted(alike) == adapter.places:
        return chosen
    return [f"{adapter.layers.path}.{block}.{name}" for block, name in adapter.places]


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(
            f"{folder} has no {CONFIG_FILE} that can be read: give the folder in which peft saved an adapter"
        ) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"the adapter in {folder} is not LoRA, and no other kind is supported: choose a LoRA adapter")
    used = next((name for name in UNSUPPORTED if config.get(name)), None)
    if used is None and config.get("bias", "none") != "none":
        used = "bias"
    if used is None and config.get("init_lora_weights") not in PLAIN_STARTS:
        used = "init_lora_weights"
    if used is not None:
        raise ValueError(
            f"the adapter in {folder} was made with {used} = {config[used]!r}, which is not supported: "
            f"make one without it"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (isinstance(rank, int) and rank >= 1 and isinstance(alpha, int | float)):
        raise ValueError(f"{folder / CONFIG_FILE} says no r and lora_alpha: give the files as peft saves them")
    return config


def _place(name: str, layers: BlockLayers, folder: Path, source: ModelSource) -> tuple[int, str, str]:
    """(block, layer, "A" or "B") of a tensor."""
    pattern = rf"{re.escape(PREFIX + layers.path)}\.(\d+)\.(.+)\.lora_([AB])\.weight"
    match = re.fullmatch(pattern, name)
    if match is not None:
        block, layer, letter = int(match[1]), match[2], match[3]
        if block < len(layers.sizes) and layer in layers.sizes[block]:
            return block, layer, letter
    raise ValueError(
        f"the adapter in {folder} holds {name}, which is no factor of a linear layer in the blocks of {source.name}: "
        f"give a LoRA adapter of this model that adapts layers of its blocks alone"
    )
