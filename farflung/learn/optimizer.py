"""Inner optimizers whose moments have names: torch's own (and ADOPT), with state that others can read and write.

Moments exist as zeros from the start, so that sites can average them before the first step; they stay the same tensors
for good, so whoever writes into them in place writes into the optimizer. `num_steps` counts for the bias correction.

Muon takes the matrices of numbered layers (`model.layers.3.mlp.up_proj.weight`); embeddings, heads, vectors and stacked
experts take AdamW beside it, with the same learning rate, since Muon's steps are scaled to the size of Adam's.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from farflung.learn.adopt import Adopt
from farflung.learn.checkpoint import require_fit
from farflung.learn.optimizer_config import FIRST_MOMENT, SECOND_MOMENT, OptimizerConfig
from farflung.learn.parameters import Tensors, assign_, joined, parted
from farflung.learn.state import State

ADAM_MEMORIES = {FIRST_MOMENT: "exp_avg", SECOND_MOMENT: "exp_avg_sq"}
"""From a moment's name to torch's key of it."""
MOMENTUM_MEMORIES = {FIRST_MOMENT: "momentum_buffer"}


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the parameters under one torch optimizer."""

    optimizer: torch.optim.Optimizer
    parameters: Tensors
    memories: dict[str, str]
    """As `ADAM_MEMORIES`."""


class NamedOptimizer:
    """One optimizer over named parameters; gradients are read from the parameters themselves."""

    def __init__(self, parameters: Tensors, config: OptimizerConfig) -> None:
        """Optimize `parameters` (leaves that take gradients, all on one kind of device).

        Raises:
            ValueError: nothing to optimize, or Muon on a model without matrices in numbered layers.
        """
        if not parameters:
            raise ValueError("no parameter takes a gradient: there is nothing to train")
        self.parameters = parameters
        self.config = config
        self._parts = list(_parts(parameters, config))
        self._num_steps = 0
        for part in self._parts:
            _make_state(part)
        moments = {name: self._moment(name) for name in (FIRST_MOMENT, SECOND_MOMENT)}
        self.moments: dict[str, Tensors] = {name: moment for name, moment in moments.items() if moment}
        """Live, by name and then by parameter; those that there are (of Muon, a second one only for AdamW's part)."""

    def _moment(self, name: str) -> Tensors:
        found: Tensors = {}
        for part in self._parts:
            if key := part.memories.get(name):
                found |= {path: part.optimizer.state[tensor][key] for path, tensor in part.parameters.items()}
        return {path: found[path] for path in self.parameters if path in found}

    @property
    def num_steps(self) -> int:
        """Steps taken, here or by whoever's moments these are: the t of the bias correction."""
        return self._num_steps

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        self._num_steps = num_steps
        for part in self._parts:
            for state in part.optimizer.state.values():
                if "step" in state:
                    state["step"].fill_(num_steps)

    @property
    def gradients(self) -> Tensors:
        """Live, of the parameters that have one."""
        return {name: tensor.grad for name, tensor in self.parameters.items() if tensor.grad is not None}

    def complete_gradients(self) -> None:
        """Zeros for parameters that the loss did not reach, so that all sites have the same names and steps."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def step(self, factor: float) -> float:
        """Clip, step with `factor` times the learning rate, forget the gradients; returns their norm before the clip.

        With a norm that is not finite nothing is changed: such a step would ruin this model, and then all others.
        """
        self.complete_gradients()
        total = torch.nn.utils.get_total_norm(self.gradients.values())
        gradient_norm = float(total)
        if math.isfinite(gradient_norm):
            if self.config.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.config.clip_norm, total)
            for part in self._parts:
                for group in part.optimizer.param_groups:
                    group["lr"] = self.config.learning_rate * factor
                part.optimizer.step()
            self._num_steps += 1
        for part in self._parts:
            part.optimizer.zero_grad()
        return gradient_norm

    def state(self) -> State:
        """The moments and the count of steps."""
        return State(joined(self.moments), {"name": self.config.name, "num_steps": self.num_steps})

    def check(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Say whether a saved state can be loaded here.

        Raises:
            ValueError: it is of another optimizer or model.
        """
        if values["name"] != self.config.name:
            raise ValueError(f"this checkpoint is of optimizer {values['name']}, not of {self.config.name}")
        require_fit(tensors, joined(self.moments), "the saved optimizer state")

    def load(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: as in `check`; nothing is changed then.
        """
        self.check(tensors, values)
        for name, moment in parted(tensors).items():
            assign_(self.moments[name], moment)
        self.num_steps = values["num_steps"]


def _parts(parameters: Tensors, config: OptimizerConfig) -> Iterator[_Part]:
    """The torch optimizers and what each of them optimizes."""
    betas = (config.beta1, config.beta2)
    match config.name:
        case "adamw":
            yield _adamw(parameters, config)
        case "adam":
            adam = torch.optim.Adam(_groups(parameters, config), betas=betas, eps=config.epsilon, fused=True)
            yield _Part(adam, parameters, ADAM_MEMORIES)
        case "adopt":
            adopt = Adopt(_groups(parameters, config), betas=betas, eps=config.epsilon)
            yield _Part(adopt, parameters, ADAM_MEMORIES)
        case "sgd":
            sgd = torch.optim.SGD(_groups(parameters, config), momentum=config.momentum)
            yield _Part(sgd, parameters, MOMENTUM_MEMORIES if config.momentum else {})
        case "muon":
            yield from _muon(parameters, config)


def _adamw(parameters: Tensors, config: OptimizerConfig) -> _Part:
    betas = (config.beta1, config.beta2)
    # Fused kernels are several times faster, on processors too.
    adamw = torch.optim.AdamW(_groups(parameters, config), betas=betas, eps=config.epsilon, fused=True)
    return _Part(adamw, parameters, ADAM_MEMORIES)


def _muon(parameters: Tensors, config: OptimizerConfig) -> Iterator[_Part]:
    hidden = {name: tensor for name, tensor in parameters.items() if _is_hidden_matrix(name, tensor)}
    if not hidden:
        raise ValueError("Muon is for matrices of numbered layers, and this model has none: choose adamw")
    muon = torch.optim.Muon(_groups(hidden, config), momentum=config.momentum, adjust_lr_fn="match_rms_adamw")
    yield _Part(muon, hidden, MOMENTUM_MEMORIES)
    if rest := {name: tensor for name, tensor in parameters.items() if name not in hidden}:
        yield _adamw(rest, config)


def _is_hidden_matrix(name: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and any(word.isdecimal() for word in name.split("."))


def _groups(parameters: Tensors, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Matrices decay; vectors (norms, biases) do not."""
    decaying = [tensor for tensor in parameters.values() if tensor.ndim >= 2]
    others = [tensor for tensor in parameters.values() if tensor.ndim < 2]
    groups = [(decaying, config.weight_decay), (others, 0.0)]
    return [
        {"params": tensors, "weight_decay": decay, "lr": config.learning_rate} for tensors, decay in groups if tensors
    ]


def _make_state(part: _Part) -> None:
    """What torch would make in the first step, now."""
    for parameter in part.parameters.values():
        state = part.optimizer.state[parameter]
        if part.memories is ADAM_MEMORIES:
            device = parameter.device if part.optimizer.defaults.get("fused") else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        for key in part.memories.values():
            state[key] = torch.zeros_like(parameter, requires_grad=False)
