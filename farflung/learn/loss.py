"""How well a causal language model says the next token, in float32 whatever the model computes in."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's first parameter lies."""
    return next(model.parameters()).device


def _output(model: torch.nn.Module, inputs: torch.Tensor, autocast: torch.dtype | None) -> Any:
    with torch.autocast(inputs.device.type, dtype=autocast, enabled=autocast is not None):
        # A cache is for generating: in training it would only hold memory.
        return model(input_ids=inputs, use_cache=False)


def _cross_entropy(output: Any, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    logits: torch.Tensor = output.logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def next_token_loss(model: torch.nn.Module, batch: torch.Tensor, autocast: torch.dtype | None = None) -> torch.Tensor:
    """The mean loss to train on, with a graph: a Hugging Face causal model on int64 tokens [batch, sequence + 1].

    A mixture of experts adds its balancing loss, if its configuration has `output_router_logits`.
    """
    batch = batch.to(device_of(model), non_blocking=True)
    output = _output(model, batch[:, :-1], autocast)
    loss = _cross_entropy(output, batch[:, 1:], "mean")
    balancing: torch.Tensor | None = getattr(output, "aux_loss", None)
    if balancing is not None:
        config: Any = model.config
        loss = loss + config.router_aux_loss_coef * balancing.to(loss.device)
    return loss


@torch.no_grad()
def evaluate(model: torch.nn.Module, batches: Iterable[torch.Tensor], autocast: torch.dtype | None = None) -> float:
    """The mean loss per token (nats) over all of `batches`, each int64 [batch, sequence + 1], without dropout."""
    total, num_tokens = 0.0, 0
    with _evaluating(model):
        for batch in batches:
            batch = batch.to(device_of(model))
            output = _output(model, batch[:, :-1], autocast)
            total += float(_cross_entropy(output, batch[:, 1:], "sum"))
            num_tokens += batch[:, 1:].numel()
    if not num_tokens:
        raise ValueError("there is nothing to evaluate on: hold out at least one sequence for validation")
    return total / num_tokens


@contextmanager
def _evaluating(model: torch.nn.Module) -> Generator[None, None, None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
