"""The task where no file is given: an invented language, and a small model that has learned to read it.

64 words belong to 8 clusters, and each cluster is good or bad. A text is pairs of words, each pair of one cluster, and
its label says whether more pairs are good. The model is pretrained on texts and labels, in some twenty seconds of one
core, so that it knows the clusters. In the files to tune on, three of the clusters have changed sides: what has to be
learned is little, and the model holds the features for it, as a large model does for most tasks.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from farflung.apps.finetune.settings import DataSettings, ObjectiveSettings

FORMAT = 1
"""Changes when the same settings would give other files."""
NUM_CLUSTERS = 8
WORDS_PER_CLUSTER = 8
PAIRS_PER_TEXT = 5
"""An odd number, so that no text is as good as bad."""
CHANGED_CLUSTERS = (0, 1, 4)
"""Clusters 0 to 3 are good at first, the others bad."""
END, LABEL_MARK, GOOD, BAD = "<end>", ":", "good", "bad"
OBJECTIVE = ObjectiveSettings(template="{text} :", label_words={GOOD: GOOD, BAD: BAD})
LAST_RATE_SHARE = 0.05
WARM_UP_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleConfig:
    """What the example's files are; together they name the folder."""

    seed: int = 0
    num_train: int = 4096
    num_test: int = 2048
    num_steps: int = 600
    """Of pretraining."""
    batch_size: int = 64
    learning_rate: float = 3e-3


@dataclass(frozen=True, slots=True)
class ExampleFiles:
    """Where the example lies."""

    model: Path
    """A Hugging Face folder with a tokenizer."""
    data: DataSettings

    @property
    def objective(self) -> ObjectiveSettings:
        """Of the example."""
        return OBJECTIVE


def example_files(cache_folder: Path, config: ExampleConfig = ExampleConfig()) -> ExampleFiles:
    """The example, made at the first call and kept in the cache.

    Raises:
        ValueError: the cache cannot be written.
    """
    content = json.dumps([FORMAT, asdict(config)], sort_keys=True).encode()
    target = cache_folder / f"example-{hashlib.sha256(content).hexdigest()[:12]}"
    if not target.is_dir():
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            _write(unfinished, config)
            if target.is_dir():  # another process was first; what it made is the same
                shutil.rmtree(unfinished)
            else:
                unfinished.rename(target)
        except OSError as error:
            raise ValueError(
                f"the example cannot be kept in {cache_folder} ({error.strerror}): make room there"
            ) from None
    return ExampleFiles(target, DataSettings(train=str(target / "train.tsv"), test=str(target / "test.tsv")))


def _write(folder: Path, config: ExampleConfig) -> None:
    tokenizer = _tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    _pretrained(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for number, (name, size) in enumerate((("train", config.num_train), ("test", config.num_test)), start=1):
        words, clusters = _texts(size, torch.Generator().manual_seed(1000 * config.seed + number))
        is_good = _is_good(clusters, CHANGED_CLUSTERS)
        lines = [
            f"{tokenizer.decode(row)}\t{GOOD if good else BAD}"
            for row, good in zip(words.tolist(), is_good.tolist(), strict=True)
        ]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines, ""]), encoding="utf-8")


def _vocabulary() -> list[str]:
    """Words by number: cluster c has 8 c to 8 c + 7, whose words begin alike."""
    syllables = [consonant + vowel for consonant in "bdfgklmn" for vowel in "aeiouy"]
    spelled = [first + second for first in syllables[:8] for second in syllables[40:]]
    return [*spelled[: NUM_CLUSTERS * WORDS_PER_CLUSTER], END, LABEL_MARK, GOOD, BAD]


def _tokenizer() -> PreTrainedTokenizerFast:
    numbers = {word: number for number, word in enumerate(_vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def _texts(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Words [count, 2 * pairs], and the cluster of each pair [count, pairs]."""
    clusters = torch.randint(NUM_CLUSTERS, (count, PAIRS_PER_TEXT), generator=generator)
    within = torch.randint(WORDS_PER_CLUSTER, (count, 2 * PAIRS_PER_TEXT), generator=generator)
    return clusters.repeat_interleave(2, 1) * WORDS_PER_CLUSTER + within, clusters


def _is_good(clusters: torch.Tensor, changed: tuple[int, ...] = ()) -> torch.Tensor:
    """Whether more pairs are good than bad, [count]."""
    valence = torch.where(torch.arange(NUM_CLUSTERS) < NUM_CLUSTERS // 2, 1, -1)
    valence[list(changed)] *= -1
    return valence[clusters].sum(1) > 0


def _pretrained(config: ExampleConfig) -> LlamaForCausalLM:
    """Next words and, after the mark, the label, with all clusters where they were at first."""
    numbers = {word: number for number, word in enumerate(_vocabulary())}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(numbers),
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=64,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=numbers[END],
            )
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(config.seed)
    for step in range(config.num_steps):
        done = step / config.num_steps
        share = min(1.0, (done + 1 / config.num_steps) / WARM_UP_SHARE) * max(LAST_RATE_SHARE, 1 - done)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * share
        words, clusters = _texts(config.batch_size, generator)
        labels = torch.where(_is_good(clusters), numbers[GOOD], numbers[BAD])
        marks = torch.full_like(labels, numbers[LABEL_MARK])
        batch = torch.cat([words, marks[:, None], labels[:, None]], 1)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        losses = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none").view(len(batch), -1)
        # The label counts as much as all words together.
        loss = losses[:, :-2].mean() + losses[:, -1].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
