"""Small random-weight models that learn, and a stream of made-up tokens with a pattern to learn."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from farflung.learn.optimizer import NamedOptimizer
from farflung.learn.optimizer_config import OptimizerConfig
from farflung.learn.parameters import named_parameters
from farflung.learn.schedule import Constant, Schedule
from farflung.learn.trainer import Trainer

VOCABULARY = 31
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


def llama_config(*, tied: bool = False) -> LlamaConfig:
    return LlamaConfig(
        **SIZES, num_key_value_heads=1, num_hidden_layers=2, max_position_embeddings=32, tie_word_embeddings=tied
    )


def gpt2_config() -> GPT2Config:
    """With dropout, as GPT-2 has by default."""
    return GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_head=2, n_layer=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )


def moe_config() -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        **SIZES,
        num_key_value_heads=1,
        num_hidden_layers=2,
        head_dim=8,  # pyright: ignore[reportCallIssue]  taken, though not declared
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        output_router_logits=True,
    )


def model_of(config: PreTrainedConfig, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


class Counting:
    """A stream that counts upwards modulo the vocabulary from a start that depends on the batch's number."""

    def __init__(self, batch_size: int = 4, sequence_length: int = 12, seed: int = 0) -> None:
        self._shape = (batch_size, sequence_length + 1)
        self._seed = seed
        self._number = 0

    @property
    def cursor(self) -> dict[str, int]:
        return {"number": self._number}

    def seek(self, cursor: Mapping[str, int]) -> None:
        self._number = cursor["number"]

    def next_batch(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * self._seed + self._number)
        self._number += 1
        starts = torch.randint(VOCABULARY, (self._shape[0], 1), generator=generator)
        return (starts + torch.arange(self._shape[1])) % VOCABULARY


def trainer_of(
    config: PreTrainedConfig,
    optimizer: OptimizerConfig,
    *,
    schedule: Schedule | None = None,
    num_micro_batches: int = 1,
    seed: str = "a",
    batch_size: int = 4,
) -> Trainer:
    model = model_of(config)
    named = NamedOptimizer(named_parameters(model), optimizer)
    stream = Counting(batch_size)
    return Trainer(model, named, stream, schedule or Constant(), num_micro_batches, seed=seed)


def end(step: int) -> float:
    """Progress of a test that does not care."""
    return 1.0
