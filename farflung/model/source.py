"""Where a model's configuration and tensors come from: a local folder or a repository of the Hugging Face Hub.

Nothing but the configuration and the list of tensor names is read on opening; a tensor's file is fetched when it is
asked for."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.hub import cached_file, extract_commit_hash

from farflung.model.fingerprint import fingerprint_of_folder

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
TOKENS_UNLIMITED = 2**31 - 1


@dataclass(frozen=True, eq=False)
class ModelSource:
    """A causal language model's configuration and where each of its tensors lies."""

    name: str
    """The Hub id, or the last component of the folder's path."""
    location: str
    """The folder's path or the Hub id, as transformers takes it."""
    config: PreTrainedConfig = field(repr=False)
    causal_class: type[PreTrainedModel] = field(repr=False)
    """The family's own class with a language-modelling head."""
    weight_map: Mapping[str, str] = field(repr=False)
    """Tensor name -> file name."""
    commit: str | None
    """The Hub commit, None for a folder."""

    @staticmethod
    def open(model: str) -> "ModelSource":
        """Open a local folder or a Hub id; a ValueError says why a model cannot be served and the way out."""
        config, is_folder = read_config(model), os.path.isdir(model)
        commit = None if is_folder else _commit_of(model)
        causal_class = causal_class_of(model, config)
        _refuse_uncuttable(model, config)
        weight_map = _read_weight_map(model, commit)
        name = Path(model).resolve().name if is_folder else model
        return ModelSource(name, model, config, causal_class, weight_map, commit)

    @property
    def num_blocks(self) -> int:
        """Decoder layers in the whole model."""
        return self.config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that travel between blocks."""
        return self.config.hidden_size

    @property
    def context_length_max(self) -> int:
        """Tokens that the model was made to attend over; families without a limit of their own get a very large one."""
        return getattr(self.config, "max_position_embeddings", None) or TOKENS_UNLIMITED

    @cached_property
    def dtype(self) -> torch.dtype:
        """The checkpoint's floating-point type, as the configuration states it or as the first tensor has it."""
        if isinstance(self.config.dtype, torch.dtype):
            return self.config.dtype
        name = next(iter(self.weight_map))
        with safe_open(str(self.tensor_file(name)), framework="pt") as file:
            return file.get_tensor(name).dtype

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model from others, variants tuned from it included: a hash of the folder, or the commit."""
        if self.commit is not None:
            return self.commit
        folder = Path(self.location)
        return fingerprint_of_folder(folder, [folder / file for file in sorted({*self.weight_map.values()})])

    def tensor_file(self, name: str) -> Path:
        """The local file that holds a tensor, downloading its shard (and no other) where it is missing."""
        return self._file(self.weight_map[name])

    def tensor_files(self, names: Iterable[str]) -> dict[Path, list[str]]:
        """The files that hold these tensors, each with the names to read from it."""
        names_by_file: dict[str, list[str]] = {}
        for name in names:
            names_by_file.setdefault(self.weight_map[name], []).append(name)
        return {self._file(file): wanted for file, wanted in names_by_file.items()}

    def _file(self, file: str) -> Path:
        try:
            path = cached_file(self.location, file, revision=self.commit)
        except OSError as error:
            raise ValueError(
                f"{file} of {self.name} cannot be had ({_first_line(error)}): connect, or save the model again"
            ) from error
        assert path is not None, "cached_file raises when a file is missing"
        return Path(path)


def _looks_like_path(model: str) -> bool:
    return os.path.exists(model) or model.startswith((".", "/", "~", "\\")) or model.count("/") > 1 or not model


def read_config(model: str) -> PreTrainedConfig:
    """The configuration of a local folder or a Hub id.

    Raises:
        ValueError: there is none, and the way out.
    """
    is_folder = os.path.isdir(model)
    if not is_folder and _looks_like_path(model):
        raise ValueError(f"there is no folder {model!r}: give the path of a Hugging Face model folder or a Hub id")
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        reason = _first_line(error)
        if is_folder:
            message = (
                f"{model!r} has no configuration that transformers can read ({reason}): give a folder with config.json"
            )
        else:
            message = f"{model!r} is neither a folder here nor a model that the Hub gives us ({reason}): check the name"
        raise ValueError(message) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _commit_of(model: str) -> str:
    """The Hub commit that was downloaded: all other files are taken from the same one."""
    commit = extract_commit_hash(str(_optional_file(model, CONFIG_FILE, None)), None)
    assert commit is not None, "the Hub's cache names each folder by its commit"
    return commit


def causal_class_of(model: str, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that generates text with such a configuration.

    Raises:
        ValueError: there is none.
    """
    """The class that generates text with such a configuration.

    Raises:
        ValueError: there is none.
    """
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{model!r} is of the family {config.model_type!r}, which is not a causal language model: "
            f"choose a text generator such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2"
        )
    causal_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if isinstance(causal_class, tuple):  # families with several heads: the first is the text model's
        names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]
        causal_class = next(each for each in causal_class if each.__name__ in names)
    return causal_class


def _refuse_uncuttable(model: str, config: PreTrainedConfig) -> None:
    """Refuse what the configuration alone shows to be uncuttable; `farflung.model.cut` refuses what code shows."""
    if config.get_text_config(decoder=True) is not config:
        raise ValueError(f"{model!r} takes more than text, and only text models are cut: choose its text-only variant")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{model!r} is quantized, and blocks are loaded as floats: choose its unquantized variant")
    if getattr(config, "num_kv_shared_layers", 0) or getattr(config, "kv_sharing_modes", None):
        raise ValueError(
            f"the layers of {model!r} read each other's attention cache, so they cannot live on different machines: "
            f"choose a model whose layers keep their own"
        )
    stateful = sorted({*(getattr(config, "layer_types", None) or ())} - ROLLBACK_TYPES)
    if stateful:
        raise ValueError(
            f"{model!r} has layers of type {', '.join(stateful)}, whose state cannot be rolled back: "
            f"choose a model with attention layers only"
        )


ROLLBACK_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Layer types whose cache holds keys and values by token, so that forgetting tokens is exact."""


def _read_weight_map(model: str, commit: str | None) -> dict[str, str]:
    index = _optional_file(model, SHARD_INDEX, commit)
    if index is not None:
        weight_map = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index} names no tensors: save the model again with save_pretrained")
        return weight_map
    single = _optional_file(model, SINGLE_FILE, commit)
    if single is None:
        raise ValueError(
            f"{model!r} has no {SINGLE_FILE} and no {SHARD_INDEX}: convert it with "
            f"AutoModelForCausalLM.from_pretrained(...).save_pretrained(...), which writes safetensors"
        )
    with safe_open(str(single), framework="pt") as file:
        return dict.fromkeys(file.keys(), SINGLE_FILE)


def _optional_file(model: str, file: str, commit: str | None) -> Path | None:
    path = cached_file(
        model,
        file,
        revision=commit,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)
