"""[model] of a run file: any Hugging Face configuration, or a folder or Hub id; and the model made from it."""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from farflung.apps.pretrain.model_table import MODEL_TYPE, MODEL_TYPE_DEFAULT, PATH, WEIGHTS
from farflung.model.source import read_config


def configured(table: Mapping[str, Any], usual: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of a path, or of keys, with `usual` values of those that the table leaves out.

    Raises:
        ValueError: the path is no model, or a value is refused by its family.
    """
    if PATH in table:
        return read_config(table[PATH])
    given = {name: value for name, value in table.items() if name != MODEL_TYPE}
    try:
        return CONFIG_MAPPING[table.get(MODEL_TYPE, MODEL_TYPE_DEFAULT)](**{**usual, **given})
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ValueError(f"[model] cannot be made: {_first_line(error)}") from None


def config_of(table: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration; a table takes size of vocabulary and end mark from the tokenizer unless it says them.

    Raises:
        ValueError: the path is no model, a value is refused by its family, or the vocabulary is too small.
    """
    marks = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = configured(table, marks)
    vocabulary_size = config.get_text_config().vocab_size
    if vocabulary_size < len(tokenizer):
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model's vocabulary {vocabulary_size}: "
            "raise model.vocab_size, or choose the model's own tokenizer in [data]"
        )
    return config


def new_model(table: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """The model every worker starts from: with the weights of its path, or new ones that follow from the seed.

    Raises:
        ValueError: as `config_of`, or there are no such weights.
    """
    config = config_of(table, tokenizer)
    if PATH in table and table.get(WEIGHTS, True):
        try:
            return AutoModelForCausalLM.from_pretrained(table[PATH], dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"the weights of {table[PATH]} cannot be loaded: {_first_line(error)}") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def check_length(config: PretrainedConfig, sequence_length: int) -> None:
    """Refuse sequences that the model has no positions for.

    Raises:
        ValueError: names both numbers.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and sequence_length > positions:
        raise ValueError(
            f"training.sequence_length is {sequence_length}, and the model has positions for {positions}: "
            "lower it, or raise model.max_position_embeddings"
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
