"""What a miniature of alignment is made of: the plan's model with random weights, prompts, and rewards that differ.

Words are numbers of tokens, so that every prompt is as long as the plan says. What ends an answer is a token behind the
model's vocabulary, which is never drawn, so that all are as long as the plan takes them to be.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from farflung.apps.plan.sizes import Sizes

NUM_PROBLEMS = 512
"""Of more prompts in a run they come again."""
MODEL, PROBLEMS = "model", "problems.jsonl"
END = "<end>"
REWARD = f"{__name__}:reward"
WORTHS = 1000


def reward(answer: str, problem: Mapping[str, Any]) -> float:
    """From 0 to 1, by chance as far as a model can tell: the answers of a group differ, so every step has its work."""
    return zlib.crc32(answer.encode()) % WORTHS / WORTHS


def write_exercise(folder: Path, sizes: Sizes, prompt_tokens: int, dtype: torch.dtype) -> dict[str, Any]:
    """Model, tokenizer and prompts; the tables of a run file that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    num_words = sizes.vocabulary_size
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(sizes.source.config, dtype=dtype)
    model.generation_config.eos_token_id = num_words
    model.save_pretrained(folder / MODEL)
    _tokenizer(num_words).save_pretrained(folder / MODEL)
    words = torch.randint(num_words, (NUM_PROBLEMS, prompt_tokens)).tolist()
    lines = [json.dumps({"prompt": " ".join(map(str, row))}) for row in words]
    (folder / PROBLEMS).write_text("\n".join(lines), encoding="utf-8")
    return {
        "model": {"path": str(folder / MODEL)},
        "environment": {"kind": "function", "problems": str(folder / PROBLEMS), "reward": REWARD},
    }


def _tokenizer(num_words: int) -> PreTrainedTokenizerFast:
    vocabulary = {str(number): number for number in range(num_words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
