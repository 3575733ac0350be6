"""What a run leaves: a Hugging Face model folder that `farflung serve` serves, its score, and the plot."""

import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel

from farflung.apps.pretrain.history import History
from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.plot import svg
from farflung.learn.checkpoint import load_checkpoint, save_checkpoint
from farflung.learn.loss import evaluate
from farflung.learn.parameters import Tensors, assign_, named_parameters
from farflung.learn.stream import validation_batches

MODEL_FOLDER = "model"
PLOT_FILE = "plot.svg"


def save_result(folder: Path, tensors: Tensors) -> None:
    """Where a seat leaves the run's model for the lead."""
    save_checkpoint(folder, tensors, {}, num_kept=1)


def load_result(folder: Path) -> Tensors:
    """What a seat has left.

    Raises:
        ValueError: nothing, or something damaged.
    """
    return load_checkpoint(folder).tensors


def trained_model(materials: Materials, tensors: Tensors) -> PreTrainedModel:
    """The model with these parameters."""
    model = materials.model()
    own = named_parameters(model)
    assign_(own, {name: tensors[name] for name in own})
    return model.eval()


def write_model(folder: Path, materials: Materials, model: PreTrainedModel) -> Path:
    """Write model and tokenizer, whole or not at all, in place of an earlier one; where they lie.

    Raises:
        ValueError: the disk does not take them.
    """
    target, unfinished = folder / MODEL_FOLDER, folder / f".{MODEL_FOLDER}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        materials.tokenizer.save_pretrained(unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ValueError(f"the model cannot be written to {target} ({error}): make room there") from error
    return target


def validation_loss(materials: Materials, model: PreTrainedModel) -> float:
    """Mean over the regions' held-out texts, in nats per token."""
    training = materials.run.training
    losses = [
        evaluate(model, validation_batches(tokens, training.sequence_length, training.batch_size))
        for tokens in materials.validation_tokens().values()
    ]
    return sum(losses) / len(losses)


def write_plot(folder: Path, history: History, title: str, time_name: str) -> Path:
    """Write the picture; where it lies."""
    path = folder / PLOT_FILE
    path.write_text(svg(history, title, time_name), encoding="utf-8")
    return path
