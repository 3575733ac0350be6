"""A small task that shows everything: two-digit sums, and a model of 102,400 parameters that gets half of them right.

The model knows how to add (its most likely answer is right), but often says a wrong digit, because it was trained on
texts in which every fourth digit of an answer is a random one. Reinforcement learning has to make it sure of itself.
Pretraining takes half a minute on one core, once; the model is then kept.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from farflung.systems.alignment.environment import Problem

END, PADDING = "<end>", "<pad>"
VOCABULARY = [*"0123456789+=", END, PADDING]
END_TOKEN = VOCABULARY.index(END)
NUM_PROBLEMS = 10_000
ANSWER_TOKENS = 4
"""Three digits, the last one first, and the end."""
PROMPT_TOKENS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditionConfig:
    """Model and pretraining; together they name the result."""

    num_steps: int = 700
    batch_size: int = 128
    learning_rate: float = 3e-3
    initializer_range: float = 0.1
    random_digit_share: float = 0.25
    """Of the answers' digits in the training texts."""
    num_blocks: int = 2
    hidden_size: int = 64
    num_heads: int = 4
    context_length_max: int = 22
    seed: int = 0


def addition_problem(index: int) -> Problem:
    """Problem `index` of 10,000: the prompt, and the answer with its last digit first."""
    first, second = divmod(index, 100)
    return {"prompt": f"{first:02}+{second:02}=", "answer": f"{first + second:03}"[::-1]}


def addition_reward(answer: str, problem: Problem) -> float:
    """1 for the whole sum, else 0."""
    return float(answer == problem["answer"])


def addition_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token=PADDING))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, pad_token=PADDING)


def addition_model(folder: Path, config: AdditionConfig | None = None, told: Callable[[str], object] = print) -> Path:
    """The folder of the pretrained model; trains it unless it is there already."""
    config = config or AdditionConfig()
    name = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:12]
    target = folder / f"addition-{name}"
    if target.is_dir():
        return target
    told("Pretraining a model of 102,400 parameters that adds; this takes about half a minute, once.")
    model = _pretrained(config)
    unfinished = target.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    addition_tokenizer().save_pretrained(unfinished)
    unfinished.rename(target)
    return target


def _pretrained(config: AdditionConfig) -> GPT2LMHeadModel:
    torch.manual_seed(config.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(VOCABULARY),
            n_embd=config.hidden_size,
            n_layer=config.num_blocks,
            n_head=config.num_heads,
            n_positions=config.context_length_max,
            initializer_range=config.initializer_range,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=END_TOKEN,
            pad_token_id=VOCABULARY.index(PADDING),
        )
    )
    model.generation_config.eos_token_id = END_TOKEN
    stream = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for number in range(config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, 2 * (1 - number / config.num_steps))
        texts_NT = _texts(config, stream)
        logits_NTV = model(input_ids=texts_NT[:, :-1], use_cache=False).logits[:, PROMPT_TOKENS - 1 :]
        cross_entropy(logits_NTV.flatten(0, 1), texts_NT[:, PROMPT_TOKENS:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def _texts(config: AdditionConfig, stream: torch.Generator) -> torch.Tensor:
    """Random sums with answers of which some digits are random, int64 [N, 10]."""
    shape = (config.batch_size,)
    first = torch.randint(0, 100, shape, generator=stream)
    second = torch.randint(0, 100, shape, generator=stream)
    total = first + second
    answers = torch.stack([total % 10, total // 10 % 10, total // 100], dim=1)
    random_digits = torch.randint(0, 10, answers.shape, generator=stream)
    is_random = torch.rand(answers.shape, generator=stream) < config.random_digit_share
    signs = {sign: torch.full(shape, VOCABULARY.index(sign)) for sign in ("+", "=", END)}
    prompt = [first // 10, first % 10, signs["+"], second // 10, second % 10, signs["="]]
    answers = torch.where(is_random, random_digits, answers)
    return torch.cat([torch.stack(prompt, dim=1), answers, signs[END][:, None]], dim=1)
