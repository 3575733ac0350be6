"""What a run of any kind leaves: a model folder that `farflung serve` serves, the plot, and the summary."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from farflung.apps.runs.history import History, bytes_entry
from farflung.apps.runs.known import SUMMARY_FILE
from farflung.apps.runs.plot import svg

MODEL_FOLDER = "model"
PLOT_FILE = "plot.svg"


def write_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write model and tokenizer, whole or not at all, in place of an earlier one; where they lie.

    Raises:
        ValueError: the disk does not take them.
    """
    target, unfinished = folder / MODEL_FOLDER, folder / f".{MODEL_FOLDER}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ValueError(f"the model cannot be written to {target} ({error}): make room there") from error
    return target


def write_plot(folder: Path, history: History, title: str, time_name: str) -> Path:
    """Write the picture; where it lies."""
    path = folder / PLOT_FILE
    path.write_text(svg(history, title, time_name), encoding="utf-8")
    return path


def write_summary(
    folder: Path, own: Mapping[str, Any], history: History, counters: Mapping[str, Mapping[str, int]]
) -> None:
    """Write what a run has come to: what its kind tells (`own`), and the counts that all kinds have."""
    summary = {
        **own,
        "num_tokens": history.num_tokens(),
        "num_steps": history.num_steps(),
        "seconds": history.seconds,
        "counters": counters,
        "link_bytes": bytes_entry(0.0, history.link_bytes)["links"],
    }
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
