"""Adam over gradients, on one machine that can back-propagate: how far the model gets at all."""

from typing import Any

import torch

from farflung.apps.finetune.baselines.plan import Kept, Plan, Progress, Tell
from farflung.apps.finetune.baselines.settings import AdamSettings
from farflung.apps.finetune.labelled import TuningTask
from farflung.learn.parameters import Tensors, assign_, joined, parted
from farflung.systems.onebyte.objective import Batch, Objective
from farflung.systems.onebyte.tensors import choose_tensors, chosen_parameters

WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""As torch names them."""
NO_GRADIENT = 'a reward has no gradient: choose method onebyte or mezo for objective.kind = "reward"'


def tune(model: Any, task: TuningTask, plan: Plan, settings: AdamSettings, tell: Tell, kept: Kept | None = None) -> Any:
    """Tune a model in place, without dropout, as all methods here; returns it. `kept`: where it goes on."""
    chosen = chosen_parameters(model.eval(), choose_tensors(model, plan.tensors))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    optimizer = optimizer_of(list(chosen.values()), settings)
    if kept is not None:
        _restore(chosen, optimizer, kept)
    batches = task.batches(plan.batch_size, plan.seed)
    for number in range(kept.round_number if kept else 0, plan.num_rounds):
        batch = {name: tensor.to(model.device) for name, tensor in batches(number).items()}
        loss = descend(model, task.objective, batch, optimizer, settings, plan.rate_share(number))
        tell(
            Progress(
                round_number=number + 1,
                num_rounds=plan.num_rounds,
                loss=loss,
                num_forwards=number + 1,
                num_backwards=number + 1,
                num_bytes=0,
                model=model,
                state=lambda: _state(chosen, optimizer),
            )
        )
    return model


def _state(chosen: Tensors, optimizer: torch.optim.Optimizer) -> Tensors:
    """Weights and both moments; how many steps there were, the round tells."""
    moments = {key: {name: optimizer.state[tensor][key] for name, tensor in chosen.items()} for key in MOMENTS}
    return joined({WEIGHTS: {name: tensor.detach() for name, tensor in chosen.items()}, **moments})


def _restore(chosen: Tensors, optimizer: torch.optim.Optimizer, kept: Kept) -> None:
    parts = parted(kept.state)
    with torch.no_grad():
        assign_(chosen, parts[WEIGHTS])
    for name, tensor in chosen.items():
        moments = {key: parts[key][name].to(tensor.device) for key in MOMENTS}
        optimizer.state[tensor] = {"step": torch.tensor(float(kept.round_number)), **moments}


def optimizer_of(parameters: list[torch.Tensor], settings: AdamSettings) -> torch.optim.AdamW:
    """Over these parameters, at the beginning."""
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
    )


def descend(
    model: Any,
    objective: Objective,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    settings: AdamSettings,
    rate_share: float,
) -> float:
    """One step; the loss before it."""
    loss = objective(model, batch).mean()
    if not loss.requires_grad:
        raise ValueError(NO_GRADIENT)
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * rate_share
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(group["params"], settings.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
