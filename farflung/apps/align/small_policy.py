"""Small policies, pretrained in a minute or two and then kept: something for reinforcement learning to begin with.

They are GPT-2 models over a handful of symbols, trained on texts in which a share of what they should say is wrong: so
they know what is right, and are not sure of it.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END, PADDING = "<end>", "<pad>"
"""The last two symbols of every vocabulary."""

Texts = Callable[[torch.Generator], tuple[torch.Tensor, torch.Tensor]]
"""Of a stream of randomness: int64 [N, T] a batch of texts, bool [N, T] which of their tokens are learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """Model and pretraining."""

    num_steps: int = 700
    learning_rate: float = 3e-3
    initializer_range: float = 0.1
    num_blocks: int = 2
    hidden_size: int = 64
    num_heads: int = 4
    context_length_max: int = 22
    seed: int = 0


def symbol_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token for each character; the vocabulary ends with `END` and `PADDING`."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token=PADDING))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, pad_token=PADDING)


def small_policy(target: Path, vocabulary: Sequence[str], pretraining: Pretraining, texts: Texts) -> Path:
    """Make `target` the folder of a pretrained model and its tokenizer, unless it is that already."""
    if target.is_dir():
        return target
    model = _pretrained(vocabulary, pretraining, texts)
    unfinished = target.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    symbol_tokenizer(vocabulary).save_pretrained(unfinished)
    unfinished.rename(target)
    return target


def _pretrained(vocabulary: Sequence[str], pretraining: Pretraining, texts: Texts) -> GPT2LMHeadModel:
    torch.manual_seed(pretraining.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(vocabulary),
            n_embd=pretraining.hidden_size,
            n_layer=pretraining.num_blocks,
            n_head=pretraining.num_heads,
            n_positions=pretraining.context_length_max,
            initializer_range=pretraining.initializer_range,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=vocabulary.index(END),
            pad_token_id=vocabulary.index(PADDING),
        )
    )
    model.generation_config.eos_token_id = vocabulary.index(END)
    stream = torch.Generator().manual_seed(pretraining.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=pretraining.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for number in range(pretraining.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = pretraining.learning_rate * min(1.0, 2 * (1 - number / pretraining.num_steps))
        texts_NT, is_learned_NT = texts(stream)
        logits_NTV = model(input_ids=texts_NT[:, :-1], use_cache=False).logits
        is_learned = is_learned_NT[:, 1:]
        cross_entropy(logits_NTV[is_learned], texts_NT[:, 1:][is_learned]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
