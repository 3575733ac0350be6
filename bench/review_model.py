"""A small language model for film reviews, pretrained on the texts that are given, without their labels.

Its vocabulary is words. It may begin from word vectors that others have made (GloVe's text form: a word and its numbers
a line, the most frequent first); these stay as they are, so that words that the texts lack have their meaning too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from farflung.apps.finetune.rows import Rows
from farflung.systems.onebyte.objective import NextTokenLoss

END, UNKNOWN = "<end>", "<unknown>"
EMBEDDING_STD = 0.1
LENGTH_MAX = 24
"""Words of a text in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewConfig:
    """Model and pretraining."""

    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    num_common_words: int = 3000
    """Of the vectors, beside all words that the texts have twice."""
    num_steps: int = 200
    batch_size: int = 32
    learning_rate: float = 3e-3
    seed: int = 0


def write_model(
    folder: Path, texts: Sequence[str], words: Sequence[str], vectors: Path | None, config: ReviewConfig
) -> None:
    """Pretrain on the texts and save model and tokenizer; `words` are in the vocabulary in any case."""
    counted = Counter(word for text in texts for word in text.split())
    read = {} if vectors is None else _read_vectors(vectors, {*counted, *words}, config.num_common_words)
    common = [word for word, count in counted.items() if count > 1]
    vocabulary = list(dict.fromkeys([END, UNKNOWN, *words, *common, *islice(read, config.num_common_words)]))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, unk_token=UNKNOWN)
    model = _new_model(len(vocabulary), config)
    if read:
        _begin_from(model, vocabulary, read)
    _pretrain(model, [(*wrapped.encode(text)[:LENGTH_MAX], 0) for text in texts], config)
    model.requires_grad_(True).save_pretrained(folder)
    wrapped.save_pretrained(folder)


def _read_vectors(path: Path, wanted: Container[str], num_common: int) -> dict[str, torch.Tensor]:
    """Of the words that are wanted and the first of the file, in its order."""
    found: dict[str, torch.Tensor] = {}
    with path.open(encoding="utf-8") as file:
        for place, line in enumerate(file):
            word, _, numbers = line.rstrip("\n").partition(" ")
            if place < num_common or word in wanted:
                found[word] = torch.tensor([float(number) for number in numbers.split(" ")])
    return found


def _new_model(vocabulary_size: int, config: ReviewConfig) -> LlamaForCausalLM:
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=config.hidden_size,
            intermediate_size=2 * config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=128,
            initializer_range=EMBEDDING_STD,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
        )
    )


@torch.no_grad()
def _begin_from(model: LlamaForCausalLM, vocabulary: Sequence[str], vectors: dict[str, torch.Tensor]) -> None:
    """Known words get their vectors, scaled to the size of the others; none of them is learned further."""
    all_vectors = torch.stack([vectors[word] for word in vocabulary if word in vectors])
    mean, spread = all_vectors.mean(0), all_vectors.std(0)
    embeddings = model.model.embed_tokens.weight
    for number, word in enumerate(vocabulary):
        if word in vectors:
            scaled = (vectors[word] - mean) / spread * EMBEDDING_STD
            embeddings[number].zero_()[: len(scaled)] = scaled
    embeddings.requires_grad_(False)


def _pretrain(model: LlamaForCausalLM, sequences: list[tuple[int, ...]], config: ReviewConfig) -> None:
    rows = Rows(tuple(sequences), (0,) * len(sequences), None, has_positions=False)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(config.seed)
    for step in range(config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (step + 1) / 50) * (1 - step / config.num_steps)
        indices = torch.randint(len(rows), (config.batch_size,), generator=generator).tolist()
        loss = NextTokenLoss()(model, rows.batch(indices)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
