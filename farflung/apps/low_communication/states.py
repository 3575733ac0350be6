"""The states of torch optimizers by name, whatever the optimizer: parameters, moments and the count of steps.

A moment is every tensor that an optimizer keeps for a parameter in the parameter's own shape.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from farflung.learn.optimizer_config import FIRST_MOMENT, SECOND_MOMENT
from farflung.learn.parameters import Tensors
from farflung.learn.tensor_shards import local_values

MOMENTS = {"exp_avg": FIRST_MOMENT, "momentum_buffer": FIRST_MOMENT, "exp_avg_sq": SECOND_MOMENT}
"""torch's names -> ours; a state that is not here keeps its name."""
STEP = "step"
WRAPPERS = frozenset({"module", "_orig_mod", "_checkpoint_wrapped_module"})
"""What DDP, torch.compile and activation checkpointing put into names."""


class OptimizerStates:
    """Parameters and moments of one or more optimizers over one model, live."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Make the states exist as zeros where they do not yet, without a step.

        Raises:
            ValueError: the optimizers' parameters are not the model's, or are not there to be averaged.
        """
        self._optimizers = list(optimizers)
        self.parameters = _named(model, self._optimizers)
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        for optimizer in self._optimizers:
            if not optimizer.state:
                _make_states(optimizer)

    @property
    def moments(self) -> dict[str, Tensors]:
        """Moment -> parameter -> tensor, by rising names; looked up anew, for a loaded checkpoint replaces tensors."""
        found: dict[str, Tensors] = {}
        for optimizer in self._optimizers:
            for parameter in _parameters_of(optimizer):
                for key, value in optimizer.state[parameter].items():
                    if _is_moment(key, value, parameter):
                        found.setdefault(MOMENTS.get(key) or key, {})[self._names[id(parameter)]] = value
        return {name: dict(sorted(found[name].items())) for name in sorted(found)}

    def set_num_steps(self, num_steps: int) -> None:
        """Make bias corrections count from here."""
        for state in self._states():
            if isinstance(state.get(STEP), torch.Tensor):
                state[STEP].fill_(num_steps)
            elif STEP in state:
                state[STEP] = num_steps

    @property
    def num_steps(self) -> int:
        """Steps taken, as far as the optimizers count them: the most of any parameter."""
        return max((int(state[STEP]) for state in self._states() if STEP in state), default=0)

    def _states(self) -> list[dict[str, Any]]:
        return [optimizer.state[one] for optimizer in self._optimizers for one in _parameters_of(optimizer)]


def _is_moment(key: str, value: Any, parameter: torch.Tensor) -> bool:
    if key == STEP or not isinstance(value, torch.Tensor):
        return False
    return value.shape == parameter.shape and value.is_floating_point()


def _parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    return [one for group in optimizer.param_groups for one in group["params"] if one.requires_grad]


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers add to it, so that sites may wrap differently."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _named(model: nn.Module, optimizers: Sequence[Optimizer]) -> Tensors:
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError("FSDP1 hides the shapes of parameters; shard the model with fully_shard (FSDP2) instead")
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    found: Tensors = {}
    for parameter in (one for optimizer in optimizers for one in _parameters_of(optimizer)):
        if id(parameter) not in names:
            raise ValueError(
                f"the optimizer steps a parameter of shape {tuple(parameter.shape)} that is not the model's: make the "
                "optimizer from model.parameters(), after the model is sharded or moved"
            )
        if not parameter.is_floating_point():
            raise ValueError(f"{names[id(parameter)]} is {parameter.dtype}, of which there is no average")
        found[names[id(parameter)]] = parameter
    if not found:
        raise ValueError("the optimizer has no parameter that takes a gradient: there is nothing to average")
    return dict(sorted(found.items()))


@torch.no_grad()
def _make_states(optimizer: Optimizer) -> None:
    """Make an optimizer keep what it will keep, by a step that changes nothing, and set all of it to zero."""
    parameters = _parameters_of(optimizer)
    kept = [(parameter.detach().clone(), parameter.grad) for parameter in parameters]
    settings = [dict(group) for group in optimizer.param_groups]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group.get("lr"), torch.Tensor) else 0.0
    type(optimizer).step(optimizer)  # not the instance's: a scheduler counts calls of that one
    for group, before in zip(optimizer.param_groups, settings, strict=True):
        group["lr"] = before["lr"]
    for parameter, (values, gradient) in zip(parameters, kept, strict=True):
        parameter.copy_(values)
        parameter.grad = gradient
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                value.zero_()
            elif key == STEP:
                optimizer.state[parameter][key] = 0


def is_sharded(parameters: Tensors) -> bool:
    """Whether this rank holds a part of any parameter only."""
    return any(local_values(tensor).numel() < tensor.numel() for tensor in parameters.values())


def digest_of(states: OptimizerStates) -> str:
    """Equal for sites that can average with each other: of names and shapes of parameters and moments."""
    shapes = {f"parameters/{name}": tuple(tensor.shape) for name, tensor in states.parameters.items()}
    for moment, tensors in states.moments.items():
        shapes |= {f"{moment}/{name}": tuple(tensor.shape) for name, tensor in tensors.items()}
    text = "\n".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
    return hashlib.sha256(text.encode()).hexdigest()
