"""What a plan's model weighs: parameters, bytes of a block and of a cached token, asked of the family's own layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from farflung.apps.pretrain.model import configured
from farflung.apps.pretrain.model_table import MODEL_TYPE, PATH, check_model_table
from farflung.apps.runs.reader import read
from farflung.model.budget import block_parameters, bytes_per_token
from farflung.model.cut import build_skeleton
from farflung.model.lowrank import layers_within
from farflung.model.source import ModelSource, causal_class_of

HEAD_VALUES = 128
VOCABULARY_SIZE = 32_000
FINGERPRINT = f"{'planned':-<64}"
"""As long as that of a model is: messages carry it."""
SAVED_PER_OUTPUT = 2.5
"""Of 32 bits, that autograd saves for each position and feature that leaves a linear layer of a block: 2.0 with a
Llama's attention, 2.2 with grouped heads, 2.5 with norms of queries and keys (Qwen 3)."""
SAVED_PER_WORD = 3
"""For each position and word of the vocabulary: logits, log-probabilities and their gradients."""
CONTEXT_LENGTH = 131_072
"""Of a model that is given by its numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumbersSettings:
    """[model] by its numbers alone: a Llama of this size stands for it."""

    parameters: float
    layers: int
    hidden_size: int
    vocabulary_size: int = VOCABULARY_SIZE

    def __post_init__(self) -> None:
        if min(self.parameters, self.layers, self.hidden_size, self.vocabulary_size) < 1:
            raise ValueError("parameters, layers, hidden_size and vocabulary_size must be at least 1")
        if self.intermediate_size < 1:
            least = self._other_parameters
            raise ValueError(
                f"{self.layers} layers of hidden size {self.hidden_size} have {least:,.0f} parameters in attention and "
                f"embeddings alone, and parameters says {self.parameters:,.0f}: lower layers or hidden_size"
            )

    @property
    def _other_parameters(self) -> float:
        return 4 * self.layers * self.hidden_size**2 + 2 * self.vocabulary_size * self.hidden_size

    @property
    def intermediate_size(self) -> int:
        """That makes a Llama of so many parameters."""
        return int((self.parameters - self._other_parameters) / (3 * self.layers * self.hidden_size))

    @property
    def table(self) -> dict[str, Any]:
        """Its Hugging Face configuration."""
        heads = max(1, self.hidden_size // HEAD_VALUES)
        while self.hidden_size % heads:
            heads -= 1
        return {
            MODEL_TYPE: "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "vocab_size": self.vocabulary_size,
            "max_position_embeddings": CONTEXT_LENGTH,
        }


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model as machines and links feel it."""

    name: str
    source: ModelSource
    table: Mapping[str, Any]
    """[model] of a run file."""
    parameters: int
    block_parameters: int
    """Of the largest block."""
    cache_values_per_token: int
    """Of one block."""
    layers: Mapping[str, tuple[int, int]]
    """Linear layers of one block by name: features that enter and leave."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of all tensors, by name."""

    @property
    def num_blocks(self) -> int:
        return self.source.num_blocks

    @property
    def vocabulary_size(self) -> int:
        config: Any = self.source.config
        return config.get_text_config().vocab_size

    @property
    def head_parameters(self) -> int:
        """That logits are computed with: half of what is outside of blocks, unless embeddings are the head too."""
        outside = self.parameters - self.num_blocks * self.block_parameters
        return max(0, outside if getattr(self.source.config, "tie_word_embeddings", False) else outside // 2)

    @property
    def saved_values_per_token(self) -> float:
        """Of 32 bits, that training keeps from the way forth for the way back."""
        outputs = sum(leaving for _, leaving in self.layers.values())
        return SAVED_PER_OUTPUT * self.num_blocks * outputs + SAVED_PER_WORD * self.source.config.vocab_size

    def adapter_parameters(self, rank: int) -> int:
        """Of LoRA in every linear layer."""
        return rank * self.num_blocks * sum(map(sum, self.layers.values()))

    def adapter_shapes(self, rank: int) -> dict[str, tuple[int, ...]]:
        """Of its two factors of each of them."""
        shapes: dict[str, tuple[int, ...]] = {}
        for block in range(self.num_blocks):
            for name, (num_in, num_out) in self.layers.items():
                layer = f"base_model.model.model.layers.{block}.{name}"
                shapes[f"{layer}.lora_A.default.weight"] = (rank, num_in)
                shapes[f"{layer}.lora_B.default.weight"] = (num_out, rank)
        return shapes

    def check_length(self, num_tokens: int, what: str) -> None:
        """Refuse more tokens than the model has positions for.

        Raises:
            ValueError: names both numbers.
        """
        most = self.source.context_length_max
        if num_tokens > most:
            raise ValueError(
                f"{what} is {num_tokens}, and the model has positions for {most}: lower it by {num_tokens - most}"
            )


def sizes_of(given: Mapping[str, Any]) -> Sizes:
    """The model of a plan's [model]; no weights are read.

    Raises:
        ValueError: it describes no model, or none that can be cut.
    """
    if not given:
        raise ValueError("the plan's [model] says nothing: give path, or parameters, layers and hidden_size")
    table: Mapping[str, Any] = given
    if "parameters" in given or "layers" in given:
        table = read(NumbersSettings, given, "model").table
    check_model_table(table)
    config = configured(table, {"bos_token_id": None, "eos_token_id": None})
    name = str(table.get(PATH, "MODEL"))
    source = ModelSource(name, name, config, causal_class_of(name, config), {}, FINGERPRINT)
    skeleton = build_skeleton(source, torch.float32)
    return Sizes(
        name=name,
        source=source,
        table=table,
        parameters=sum(one.numel() for one in skeleton.model.parameters()),
        block_parameters=block_parameters(skeleton),
        cache_values_per_token=bytes_per_token(source, torch.float32) // 4,
        layers=layers_within(skeleton.layers[0]),
        shapes={name: tuple(tensor.shape) for name, tensor in skeleton.model.named_parameters()},
    )
