"""LoRA adapters of small models: fresh ones that change something, and the same model under plain peft."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from farflung.model.adapters import LoraAdapter
from farflung.model.source import ModelSource


def lora(source: ModelSource, seed: int = 1, **settings: Any) -> LoraAdapter:
    """An adapter whose two factors are both random."""
    generator = torch.Generator().manual_seed(seed)
    adapter = LoraAdapter.new(source, generator=generator, **{"rank": 4, "targets": "all-linear", **settings})
    with torch.no_grad():
        for parameter in adapter.outer:
            parameter.normal_(std=0.1, generator=generator)
    return adapter


def under_peft(whole: Any, folder: Path, *, is_trainable: bool = False) -> Any:
    """A copy of a whole model with the adapter of a folder, as peft loads it."""
    with warnings.catch_warnings():
        _forgive()
        return PeftModel.from_pretrained(copy.deepcopy(whole), str(folder), is_trainable=is_trainable).eval()


def _forgive() -> None:
    """peft asks for an attribute that transformers has given another name."""
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def saved_by_peft(whole: Any, folder: Path, seed: int = 1, **settings: Any) -> Any:
    """A copy of a whole model with a random adapter, which peft has saved in the folder."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        _forgive()
        torch.manual_seed(seed)
        config = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, "init_lora_weights": False, **settings})
        adapted = get_peft_model(copy.deepcopy(whole), config).eval()
        for name, parameter in adapted.named_parameters():
            if "lora_" in name and config.init_lora_weights is False:
                parameter.data.normal_(std=0.2)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return adapted
