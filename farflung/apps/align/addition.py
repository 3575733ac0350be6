"""A small task that shows everything: two-digit sums, and a model of 102,400 parameters that gets half of them right.

The model knows how to add (its most likely answer is right), but often says a wrong digit, because it was trained on
texts in which every fourth digit of an answer is a random one. Reinforcement learning has to make it sure of itself.
Pretraining takes half a minute on one core, once; the model is then kept.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from farflung.apps.align.small_policy import END, PADDING, Pretraining, small_policy, symbol_tokenizer
from farflung.systems.alignment.environment import Problem

VOCABULARY = [*"0123456789+=", END, PADDING]
END_TOKEN = VOCABULARY.index(END)
NUM_PROBLEMS = 10_000
ANSWER_TOKENS = 4
"""Three digits, the last one first, and the end."""
PROMPT_TOKENS = 6
PRETRAINING = Pretraining()
BATCH_SIZE = 128
RANDOM_DIGIT_SHARE = 0.25
"""Of the answers' digits in the training texts."""


def addition_problem(index: int) -> Problem:
    """Problem `index` of 10,000: the prompt, and the answer with its last digit first."""
    first, second = divmod(index, 100)
    return {"prompt": f"{first:02}+{second:02}=", "answer": f"{first + second:03}"[::-1]}


def addition_reward(answer: str, problem: Problem) -> float:
    """1 for the whole sum, else 0."""
    return float(answer == problem["answer"])


def addition_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character."""
    return symbol_tokenizer(VOCABULARY)


def addition_model(folder: Path, told: Callable[[str], object] = print) -> Path:
    """The folder of the pretrained model; trains it unless it is there already."""
    settings = asdict(PRETRAINING) | {"batch_size": BATCH_SIZE, "random_digit_share": RANDOM_DIGIT_SHARE}
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    target = folder / f"addition-{name}"
    if not target.is_dir():
        told("Pretraining a model of 102,400 parameters that adds; this takes about half a minute, once.")
    return small_policy(target, VOCABULARY, PRETRAINING, _texts)


def _texts(stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random sums with answers of which some digits are random, int64 [N, 10]; answer and end are learned."""
    shape = (BATCH_SIZE,)
    first = torch.randint(0, 100, shape, generator=stream)
    second = torch.randint(0, 100, shape, generator=stream)
    total = first + second
    answers = torch.stack([total % 10, total // 10 % 10, total // 100], dim=1)
    random_digits = torch.randint(0, 10, answers.shape, generator=stream)
    is_random = torch.rand(answers.shape, generator=stream) < RANDOM_DIGIT_SHARE
    signs = {sign: torch.full(shape, VOCABULARY.index(sign)) for sign in ("+", "=", END)}
    prompt = [first // 10, first % 10, signs["+"], second // 10, second % 10, signs["="]]
    answers = torch.where(is_random, random_digits, answers)
    texts_NT = torch.cat([torch.stack(prompt, dim=1), answers, signs[END][:, None]], dim=1)
    return texts_NT, (torch.arange(texts_NT.shape[1]) >= PROMPT_TOKENS).expand_as(texts_NT)
