"""A small real language model on text that is at hand, for benchmarks of training: the same task for every method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from farflung.learn.corpus import standard_library
from farflung.learn.optimizer import NamedOptimizer
from farflung.learn.optimizer_config import OptimizerConfig
from farflung.learn.parameters import Tensors, assign_, named_parameters
from farflung.learn.schedule import Cosine, Schedule
from farflung.learn.stream import Shard, Tokens, TokenStream, hold_out, validation_batches
from farflung.learn.trainer import Trainer

VOCABULARY = 128
SEQUENCE_TOKENS = 32
BATCH_SEQUENCES = 4
VALIDATION_SEQUENCES = 512
VALIDATION_STRIDE = 8
"""The validation sequences are spread over a stretch of text so many times as long."""
OPTIMIZER = OptimizerConfig(name="adamw", learning_rate=3e-3, beta1=0.9, beta2=0.95, weight_decay=0.1, clip_norm=1.0)
SCHEDULE = Cosine(warmup=0.05, floor=0.1)


def read_tokens(path: Path | None) -> Tokens:
    """Characters below 128 as tokens: of a file, or of Python's standard library."""
    text = "".join(standard_library(3_000_000)) if path is None else path.read_text(encoding="utf-8", errors="ignore")
    return np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8).astype(np.uint16)


@dataclass(frozen=True)
class Task:
    """What every method trains: a Llama (of 29,344 parameters, unless said otherwise) on shards of the same text."""

    tokens: Tokens
    seed: int
    num_shards: int
    batch_sequences: int = BATCH_SEQUENCES
    optimizer: OptimizerConfig = OPTIMIZER
    schedule: Schedule = SCHEDULE
    hidden_size: int = 32
    num_layers: int = 2
    num_heads: int = 2

    def model(self) -> LlamaForCausalLM:
        """With the initial weights of this seed, the same for all workers."""
        torch.manual_seed(self.seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=self.hidden_size,
                intermediate_size=self.hidden_size * 11 // 4,
                num_hidden_layers=self.num_layers,
                num_attention_heads=self.num_heads,
                max_position_embeddings=SEQUENCE_TOKENS,
                tie_word_embeddings=True,
            )
        )

    def trainer(self, shard: int, *, is_compiled: bool = False) -> Trainer:
        """A worker's, on its own shard; compiled, steps take two thirds of the time after half a minute of work."""
        model = self.model()
        if is_compiled:
            model.forward = torch.compile(model.forward, dynamic=False)
        training = self._held_out()[0]
        stream = TokenStream(
            training, SEQUENCE_TOKENS, self.batch_sequences, Shard(shard, self.num_shards), f"data-{self.seed}"
        )
        optimizer = NamedOptimizer(named_parameters(model), self.optimizer)
        return Trainer(model, optimizer, stream, self.schedule, seed=f"{self.seed}:{shard}")

    def _held_out(self) -> tuple[Tokens, Tokens]:
        return hold_out(self.tokens, SEQUENCE_TOKENS, VALIDATION_SEQUENCES * VALIDATION_STRIDE)


class Examiner:
    """Measures the validation loss of any parameters."""

    def __init__(self, task: Task) -> None:
        self._trainer = task.trainer(0)
        batches = list(validation_batches(task._held_out()[1], SEQUENCE_TOKENS, VALIDATION_SEQUENCES))
        sequences = torch.cat(batches)[::VALIDATION_STRIDE]
        self._batches = [sequences]

    def loss(self, parameters: Tensors) -> float:
        """Nats per token."""
        assign_(self._trainer.parameters, parameters)
        return self._trainer.evaluate(self._batches)
