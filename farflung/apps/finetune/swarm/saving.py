"""What tuning through a swarm leaves: a folder that `peft` loads, and beside it what peft has no form for.

adapter/adapter_config.json, adapter_model.safetensors    peft's: a prompt or LoRA, with the head if there is one
adapter/deep_prompts.json, deep_prompts.safetensors       ours: what is added at every block
adapter/classes.json                                      ours: the label of each value of a head of classes
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.swarm.materials import SwarmMaterials
from farflung.apps.finetune.swarm.model import OwnParameters
from farflung.apps.finetune.swarm.objectives import ClassLoss
from farflung.model.peft_files import CONFIG_FILE, PREFIX, TENSORS_FILE, save_adapter

ADAPTER_FOLDER = "adapter"
DEEP_FORMAT = "farflung deep prompts 1"
DEEP_NAME, CLASSES_FILE = "deep_prompts", "classes.json"
HEAD = "score"
"""What transformers calls the head of its models for sequence classification."""
WITH_HEAD = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", HEAD]}
"""As peft has it."""


def write_result(folder: Path, run: FinetuneRun, materials: SwarmMaterials, own: OwnParameters) -> Path:
    """Write all files, or none, in place of earlier ones; where they lie.

    Raises:
        ValueError: the disk does not take them.
    """
    target, unfinished = folder / ADAPTER_FOLDER, folder / f".{ADAPTER_FOLDER}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        (_write_lora if own.lora is not None else _write_prompt)(unfinished, materials, own)
        _write_own(unfinished, materials, own)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ValueError(f"the adapter cannot be written to {target} ({error}): make room there") from error
    return target


def _write_lora(folder: Path, materials: SwarmMaterials, own: OwnParameters) -> None:
    assert own.lora is not None
    save_adapter(own.lora, folder, base_name=materials.source.location)
    if own.head_NH is not None:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        _write_json(folder / CONFIG_FILE, {**config, **WITH_HEAD})
        tensors = load_file(folder / TENSORS_FILE)
        _write_tensors(folder / TENSORS_FILE, {**tensors, f"{PREFIX}{HEAD}.weight": own.head_NH})


def _write_prompt(folder: Path, materials: SwarmMaterials, own: OwnParameters) -> None:
    source = materials.source
    assert own.prompt_PH is not None
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source.location,
        "inference_mode": True,
        "num_virtual_tokens": own.prompt_PH.shape[0],
        "token_dim": source.hidden_size,
        "num_transformer_submodules": 1,
        "num_attention_heads": source.config.num_attention_heads,
        "num_layers": source.num_blocks,
        "prompt_tuning_init": "RANDOM",
        **({} if own.head_NH is None else WITH_HEAD),
    }
    tensors = {"prompt_embeddings": own.prompt_PH}
    if own.head_NH is not None:
        tensors[f"base_model.{HEAD}.weight"] = own.head_NH
    _write_json(folder / CONFIG_FILE, config)
    _write_tensors(folder / TENSORS_FILE, tensors)


def _write_own(folder: Path, materials: SwarmMaterials, own: OwnParameters) -> None:
    if own.deep_LPH is not None:
        _write_json(folder / f"{DEEP_NAME}.json", {"format": DEEP_FORMAT, "shape": list(own.deep_LPH.shape)})
        _write_tensors(folder / f"{DEEP_NAME}.safetensors", {DEEP_NAME: own.deep_LPH})
    if isinstance(materials.task.objective, ClassLoss):
        _write_json(folder / CLASSES_FILE, list(materials.task.objective.classes))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def load_prompts(folder: Path) -> OwnParameters:
    """Prompts, deep ones too, and the head, as `write_result` has left them.

    Raises:
        ValueError: there are none, or they are damaged.
    """
    try:
        tensors = load_file(folder / TENSORS_FILE)
        deep = folder / f"{DEEP_NAME}.safetensors"
        return OwnParameters(
            prompt_PH=tensors["prompt_embeddings"],
            deep_LPH=load_file(deep)[DEEP_NAME] if deep.exists() else None,
            head_NH=tensors.get(f"base_model.{HEAD}.weight"),
        )
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"{folder} holds no prompts of a finished run ({error}): give its adapter folder") from None
