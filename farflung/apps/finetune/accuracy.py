"""How good a model is on examples that it has not learned from."""

from dataclasses import dataclass
from typing import Any

import torch

from farflung.apps.finetune.rows import Rows
from farflung.systems.onebyte.objective import Judging, Objective

BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Score:
    """Of a model on held-out examples."""

    loss: float
    """The objective's mean over the examples: nats, or minus the reward."""
    accuracy: float | None
    """Share of examples whose label's word is the likeliest; of texts, share of tokens that are the likeliest next
    ones; of preferences, share of pairs in their order; None for rewards and scores."""
    num_examples: int


@torch.no_grad()
def score(model: Any, objective: Objective, rows: Rows, batch_size: int = BATCH_SIZE) -> Score:
    """Measure a model on all rows; its weights and mode stay as they are."""
    # Rows of like length together, so that little is padding.
    order = sorted(range(len(rows)), key=lambda index: len(rows.tokens[index]))
    was_training = model.training
    model.eval()
    loss, num_right, num_judged = 0.0, 0, 0
    try:
        for first in range(0, len(order), batch_size):
            batch = rows.batch(order[first : first + batch_size])
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            if isinstance(objective, Judging):
                losses, right, judged = objective.judge(model, batch)
                num_right, num_judged = num_right + right, num_judged + judged
            else:
                losses = objective(model, batch)
            loss += float(losses.double().sum())
    finally:
        model.train(was_training)
    return Score(loss / len(rows), num_right / num_judged if num_judged else None, len(rows))
