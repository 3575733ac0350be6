"""The steps of tuning through a swarm: AdamW on what the client trains, with gradients from the blocks elsewhere."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from farflung.apps.finetune.baselines.plan import Kept, Progress, Tell
from farflung.apps.finetune.labelled import TuningTask
from farflung.apps.finetune.swarm.model import TunedModel
from farflung.apps.finetune.swarm.settings import SwarmSettings
from farflung.learn.parameters import Tensors, assign_, joined, parted
from farflung.systems.onebyte.objective import Batch

VALUES = "values"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""As torch names them."""
RANDOMNESS = "randomness"


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How many, on what."""

    num_rounds: int
    batch_size: int
    seed: str
    """Decides the batches."""


def tune(
    model: TunedModel,
    task: TuningTask,
    steps: Steps,
    settings: SwarmSettings,
    tell: Tell,
    kept: Kept | None = None,
    *,
    num_bytes: Callable[[], int] = lambda: 0,
) -> None:
    """Train what the client owns, in place. `kept`: where it goes on; `num_bytes`: sent and received until now."""
    own = model.own.tensors()
    optimizer = torch.optim.AdamW(
        own.values(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
    )
    first_round = kept.round_number if kept else 0
    if kept is not None:
        _restore(own, optimizer, kept)
    # A step's rate is that of its end, so that the first one of a warm-up is none.
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda number: settings.schedule((number + first_round + 1) / steps.num_rounds)
    )
    batches = task.batches(steps.batch_size, steps.seed)
    num_parts = settings.gradient_accumulation
    for number in range(first_round, steps.num_rounds):
        loss = 0.0
        for part in parts_of(batches.indices(number), num_parts):
            batch = {name: tensor.to(model.device) for name, tensor in task.train.batch(part).items()}
            loss += _accumulate(model, task, batch, len(part) / steps.batch_size)
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(own.values(), settings.clip_norm)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        num_passes = (number + 1) * num_parts
        tell(
            Progress(
                round_number=number + 1,
                num_rounds=steps.num_rounds,
                loss=loss,
                num_forwards=num_passes,
                num_backwards=num_passes,
                num_bytes=(kept.num_bytes if kept else 0) + num_bytes(),
                model=model,
                state=lambda: _state(own, optimizer),
            )
        )


def parts_of(indices: Sequence[int], num_parts: int) -> list[Sequence[int]]:
    """A round's rows in so many parts, as equal as can be; none is empty."""
    ends = [len(indices) * number // num_parts for number in range(num_parts + 1)]
    return [indices[first:last] for first, last in itertools.pairwise(ends) if first < last]


def _accumulate(model: Any, task: TuningTask, batch: Batch, share: float) -> float:
    """Add a part's gradient; its share of the round's loss."""
    loss = task.objective(model, batch).mean() * share
    loss.backward()
    return loss.item()


def _state(own: Tensors, optimizer: torch.optim.Optimizer) -> Tensors:
    """Values, both moments and the stream of randomness; how many steps there were, the round tells."""
    moments = {key: {name: optimizer.state[tensor][key] for name, tensor in own.items()} for key in MOMENTS}
    values = {name: tensor.detach() for name, tensor in own.items()}
    return {**joined({VALUES: values, **moments}), RANDOMNESS: torch.get_rng_state()}


def _restore(own: Tensors, optimizer: torch.optim.Optimizer, kept: Kept) -> None:
    state = dict(kept.state)
    torch.set_rng_state(state.pop(RANDOMNESS))
    parts = parted(state)
    with torch.no_grad():
        assign_(own, parts[VALUES])
    for name, tensor in own.items():
        moments = {key: parts[key][name].to(tensor.device) for key in MOMENTS}
        optimizer.state[tensor] = {"step": torch.tensor(float(kept.round_number)), **moments}
