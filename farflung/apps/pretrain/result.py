"""The model that a pretraining run has made, and its score."""

from pathlib import Path

from transformers import PreTrainedModel

from farflung.apps.pretrain.materials import Materials
from farflung.learn.checkpoint import load_checkpoint, save_checkpoint
from farflung.learn.loss import evaluate
from farflung.learn.parameters import Tensors, assign_, named_parameters
from farflung.learn.stream import validation_batches


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


def validation_loss(materials: Materials, model: PreTrainedModel) -> float:
    """Mean over the regions' held-out texts, in nats per token."""
    training = materials.run.training
    losses = [
        evaluate(model, validation_batches(tokens, training.sequence_length, training.batch_size))
        for tokens in materials.validation_tokens().values()
    ]
    return sum(losses) / len(losses)
