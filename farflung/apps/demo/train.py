"""Trains the demonstration's model: a few million parameters of the Llama architecture that learn to write Python.

The seconds are fixed, not the steps, so that the demonstration ends in time on any machine: the learning rate falls
with the time that is used up.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from farflung.learn.corpus import standard_library
from farflung.learn.documents import Piece
from farflung.learn.tokenized import encode
from farflung.learn.tokenizer import learn_tokenizer

CHARACTERS_MAX = 500_000
"""Of the corpus: as much as a minute and a half of training reads about twice."""
WARM_UP_SHARE = 0.03
LEARNING_RATE_LAST_SHARE = 0.05
LOSS_SMOOTHING = 0.03
TRIAL_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Model and training; together with the corpus they name the result."""

    seconds: float = 90.0
    vocabulary_size: int = 2048
    hidden_size: int = 192
    intermediate_size: int = 512
    num_blocks: int = 6
    num_heads: int = 6
    num_key_value_heads: int = 3
    context_length_max: int = 512
    sequence_length: int = 128
    """Tokens of one sequence in training."""
    batch_size: int = 2
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.seconds <= 24 * 3600:
            raise ValueError("--train-seconds must be between 1 and a day")


def trained_model(folder: Path, config: TrainConfig, console: Console) -> Path:
    """The folder of the trained model; trains it unless one of the same corpus and settings is there already."""
    texts = standard_library(CHARACTERS_MAX)
    content = json.dumps([asdict(config), texts], sort_keys=True).encode()
    target = folder / f"model-{hashlib.sha256(content).hexdigest()[:12]}"
    if target.is_dir():
        console.print(f"The model is there already: {target}")
        return target
    model, tokenizer = _train(texts, config, console)
    unfinished = target.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(target)
    return target


def _train(texts: list[str], config: TrainConfig, console: Console) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    tokenizer = learn_tokenizer(texts, config.vocabulary_size)
    tokens = _tokens(texts, tokenizer)
    torch.manual_seed(config.seed)
    model = _new_model(config, tokenizer)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"Training {num_parameters / 1e6:.1f} million parameters on {sum(map(len, texts)) / 1e6:.1f} million "
        f"characters of Python's standard library for {config.seconds:g} s."
    )
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TextColumn("loss {task.fields[loss]:.2f}"),
        TextColumn("{task.fields[rate]:.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=config.seconds, loss=float("nan"), rate=0.0)
        _run_steps(model, tokens, config, progress, task)
    return model.eval(), tokenizer


def _run_steps(
    model: LlamaForCausalLM, tokens: torch.Tensor, config: TrainConfig, progress: Progress, task: TaskID
) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    stream = torch.Generator().manual_seed(config.seed)

    def step(share: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * share
        starts = torch.randint(len(tokens) - config.sequence_length - 1, (config.batch_size,), generator=stream)
        batch_BT = torch.stack([tokens[start : start + config.sequence_length + 1] for start in starts.tolist()])
        logits_BTV = model(input_ids=batch_BT[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits_BTV.flatten(0, 1), batch_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    began_at = time.monotonic()
    loss_average = step(_share(0.0))
    num_tokens = config.batch_size * config.sequence_length
    torch.set_num_threads(_quickest_threads(lambda: step(_share(0.0))))
    while (used := time.monotonic() - began_at) < config.seconds:
        loss_average += LOSS_SMOOTHING * (step(_share(used / config.seconds)) - loss_average)
        num_tokens += config.batch_size * config.sequence_length
        progress.update(task, completed=used, loss=loss_average, rate=num_tokens / max(used, 1e-3))
    progress.update(task, completed=config.seconds)


def _quickest_threads(step: Callable[[], object]) -> int:
    """One thread or one per core: where others compute too, many threads wait for each other at every turn."""
    seconds: dict[int, float] = {}
    for num_threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(num_threads)
        step()
        began_at = time.monotonic()
        for _ in range(TRIAL_STEPS):
            step()
        seconds[num_threads] = time.monotonic() - began_at
    return min(seconds, key=lambda num_threads: seconds[num_threads])


def _share(done: float) -> float:
    """Of the full learning rate, after this share of the time: a short rise, then a straight fall."""
    return min(1.0, (done + 1e-3) / WARM_UP_SHARE) * max(LEARNING_RATE_LAST_SHARE, 1.0 - done)


def _tokens(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All texts in one row, an end mark after each."""
    pieces = [Piece(text, ends_document=True) for text in texts]
    return torch.cat([torch.from_numpy(row) for row in encode(pieces, tokenizer)])


def _new_model(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_blocks,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.context_length_max,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=cast(int, tokenizer.eos_token_id),
        )
    )
