"""MeZO (arXiv 2305.17333, algorithm 1): two forward passes for each normal direction, weights changed in place.

Directions are never kept: each is generated anew from its seed every time it is needed, so that memory is that of
inference and one tensor.
"""

from typing import Any

import torch

from farflung.apps.finetune.baselines.plan import Kept, Plan, Progress, Tell
from farflung.apps.finetune.baselines.settings import MezoSettings
from farflung.apps.finetune.labelled import TuningTask
from farflung.learn.parameters import Tensors, assign_
from farflung.systems.onebyte.objective import Batch, Objective
from farflung.systems.onebyte.tensors import choose_tensors, chosen_parameters


def tune(model: Any, task: TuningTask, plan: Plan, settings: MezoSettings, tell: Tell, kept: Kept | None = None) -> Any:
    """Tune a model in place; returns it. `kept`: where it goes on."""
    parameters = chosen_parameters(model.eval(), choose_tensors(model, plan.tensors))
    if kept is not None:
        assign_(parameters, kept.state)
    batches = task.batches(plan.batch_size, plan.seed)
    for number in range(kept.round_number if kept else 0, plan.num_rounds):
        batch = {name: tensor.to(model.device) for name, tensor in batches(number).items()}
        seeds = [plan.number(f"{number}:{direction}") for direction in range(settings.num_directions)]
        rate = settings.learning_rate * plan.rate_share(number)
        loss = step(model, parameters, task.objective, batch, seeds, settings.epsilon, rate)
        tell(
            Progress(
                round_number=number + 1,
                num_rounds=plan.num_rounds,
                loss=loss,
                num_forwards=2 * settings.num_directions * (number + 1),
                num_backwards=0,
                num_bytes=0,
                model=model,
                state=lambda: parameters,
            )
        )
    return model


@torch.no_grad()
def step(
    model: Any, parameters: Tensors, objective: Objective, batch: Batch, seeds: list[int], epsilon: float, rate: float
) -> float:
    """One step along a direction for each seed: W -= rate * mean(projection * z); the mean loss beside the weights."""
    projections: list[float] = []
    losses: list[float] = []
    for seed in seeds:
        shift(parameters, seed, epsilon)
        forth = float(objective(model, batch).mean())
        shift(parameters, seed, -2 * epsilon)
        back = float(objective(model, batch).mean())
        shift(parameters, seed, epsilon)
        projections.append((forth - back) / (2 * epsilon))
        losses.append((forth + back) / 2)
    for seed, projection in zip(seeds, projections, strict=True):
        shift(parameters, seed, -rate * projection / len(seeds))
    return sum(losses) / len(losses)


@torch.no_grad()
def shift(parameters: Tensors, seed: int, scale: float) -> None:
    """W += scale * z in place, z being normal values that follow from the seed."""
    generators: dict[torch.device, torch.Generator] = {}
    for parameter in parameters.values():
        device = parameter.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        parameter.add_(
            torch.randn(parameter.shape, generator=generators[device], device=device, dtype=parameter.dtype),
            alpha=scale,
        )
