"""What a fine-tuning run needs and a plan does not have: texts of the plan's length, and weights where it names none.

How fast a run is does not depend on what its texts say, only on how long they are; random weights cost what others do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from farflung.apps.plan.goals import FinetuneGoal
from farflung.apps.plan.sizes import Sizes
from farflung.apps.pretrain.model import PATH
from farflung.learn.tokenizer import byte_tokenizer

BATCHES = 4
"""Of texts, before they come again."""
WORDS = ("the", "swarm", "learns", "from", "what", "every", "machine", "says", "in", "a", "single", "byte")


def write_stock(goal: FinetuneGoal, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Texts in `folder`, and a model where the plan names none; what `stocked` adds to a run file's tables.

    Raises:
        ValueError: the model's vocabulary is too small for any text.
    """
    folder = folder.absolute()  # whoever reads the run file may stand elsewhere
    folder.mkdir(parents=True, exist_ok=True)
    texts = folder / "texts.tsv"
    texts.write_text("\n".join(["text\tlabel", *_texts(goal), ""]), encoding="utf-8")
    model = {} if PATH in sizes.table else {PATH: str(_new_model(sizes, folder / "base"))}
    return {
        "model": {**model, "is_written": False},
        "data": {"train": str(texts)},
        "objective": {"kind": "text"},
    }


def stocked(tables: Mapping[str, Any], stock: Mapping[str, Any]) -> dict[str, Any]:
    """A run file that a plan writes, with what lies in the stock."""
    return {**tables, **{name: {**tables.get(name, {}), **added} for name, added in stock.items()}}


def num_texts(goal: FinetuneGoal) -> int:
    """That the run has."""
    return BATCHES * goal.batch_size


def _texts(goal: FinetuneGoal) -> list[str]:
    """Without labels: the text is what is learned. Each word is a token at least, so that all are cut to one length."""
    return [
        " ".join(WORDS[(number + place) % len(WORDS)] for place in range(goal.sequence_length)) + "\t"
        for number in range(num_texts(goal))
    ]


def _new_model(sizes: Sizes, folder: Path) -> Path:
    tokenizer, config = byte_tokenizer(), sizes.source.config
    vocabulary_size = config.get_text_config().vocab_size
    if vocabulary_size < len(tokenizer):
        raise ValueError(
            f"a pilot gives a model without a path the {len(tokenizer)} tokens of bytes, and its vocabulary has "
            f"{vocabulary_size}: raise model.vocab_size"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
