"""Outer rules: how a server, or every member of a group, descends on the deltas that workers bring.

A delta is start minus end, so it points up the loss as a gradient does, and a rule descends on it. Rules hold no state:
`init` makes it, `update` changes parameters and state in place. Every rule works value by value, so a large set can be
updated in slices (views of parameters, delta and the state's tensors) as long as each slice starts at the same `step`.

Momentum is of the heavy-ball kind, without a factor of 1 - beta, in all of them. A rule is also its settings, which a
run file is read into, so that torch is loaded by what a rule does alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from farflung.learn.parameters import Tensors


@dataclass(slots=True)
class RuleState:
    """What a rule remembers: how many deltas it has taken, and sets of tensors by name (`momentum` ...)."""

    step: int = 0
    tensors: dict[str, Tensors] = field(default_factory=dict[str, "Tensors"])


class Rule(Protocol):
    """An outer optimizer."""

    def init(self, parameters: Mapping[str, torch.Tensor]) -> RuleState:
        """The state before the first delta: zeros, on the devices of `parameters`."""
        ...

    def update(
        self, parameters: Mapping[str, torch.Tensor], delta: Mapping[str, torch.Tensor], state: RuleState
    ) -> None:
        """Descend on `delta` (same names and shapes): changes `parameters` and `state` in place."""
        ...


def _check_rate(learning_rate: float, momentum: float = 0.0) -> None:
    if not learning_rate > 0:
        raise ValueError(f"an outer learning rate must be above 0, not {learning_rate}")
    if not 0 <= momentum < 1:
        raise ValueError(f"an outer momentum must be at least 0 and below 1, not {momentum}")


def _zeros(parameters: Mapping[str, torch.Tensor]) -> Tensors:
    from farflung.learn.parameters import zeros_like

    return zeros_like(parameters)


def _each(
    parameters: Mapping[str, torch.Tensor],
    delta: Mapping[str, torch.Tensor],
    state: RuleState,
    change: Callable[[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]], None],
) -> None:
    """Call `change(parameter, its delta, its state by name)` on every parameter and count the step."""
    from torch import no_grad

    assert parameters.keys() == delta.keys(), "a delta has the names of the parameters"
    with no_grad():
        for name, parameter in parameters.items():
            own = {memory: tensors[name] for memory, tensors in state.tensors.items()}
            change(parameter, delta[name].to(parameter), own)
    state.step += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """Plain descent, `p -= lr * d`: with a rate of 1 and the mean delta, parameters become the mean of the workers'."""

    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)

    def init(self, parameters: Mapping[str, torch.Tensor]) -> RuleState:
        """No memory."""
        return RuleState()

    def update(
        self, parameters: Mapping[str, torch.Tensor], delta: Mapping[str, torch.Tensor], state: RuleState
    ) -> None:
        """Descend on `delta`."""
        _each(parameters, delta, state, lambda parameter, change, own: self._change(parameter, change))

    def _change(self, parameter: torch.Tensor, delta: torch.Tensor) -> None:
        parameter.add_(delta, alpha=-self.learning_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nesterov:
    """Nesterov momentum as in torch and DiLoCo (arXiv 2311.08105): `m = beta m + d; p -= lr (d + beta m)`."""

    learning_rate: float = 0.7
    momentum: float = 0.9
    """beta"""

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate, self.momentum)

    def init(self, parameters: Mapping[str, torch.Tensor]) -> RuleState:
        """One `momentum` of the size of the parameters."""
        return RuleState(tensors={"momentum": _zeros(parameters)})

    def update(
        self, parameters: Mapping[str, torch.Tensor], delta: Mapping[str, torch.Tensor], state: RuleState
    ) -> None:
        """Descend on `delta`."""
        _each(parameters, delta, state, self._change)

    def _change(self, parameter: torch.Tensor, delta: torch.Tensor, own: dict[str, torch.Tensor]) -> None:
        own["momentum"].mul_(self.momentum).add_(delta)
        parameter.add_(own["momentum"], alpha=-self.learning_rate * self.momentum)
        parameter.add_(delta, alpha=-self.learning_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayedNesterov:
    """Delayed Nesterov (arXiv 2401.09135), the rule of both levels of HALoS (arXiv 2506.04531).

    Every delta moves the parameters at once by its N-th part; the momentum changes only with every N-th delta, by the
    mean of those since the last change:

        on every N-th delta:  m = beta m + mean(d);  p -= lr ((1 - cN + c) beta m + d / N)
        on all others:        p -= lr (c beta m + d / N)

    Published code keeps m and the sum of deltas. Here the next m is gathered at once, u = beta m + sum(d) / N, and m
    itself is needed only if c is not 0: a server of a large model has one tensor for each of its own, not two.

    With N = 1 this is `Nesterov`.
    """

    learning_rate: float
    """lr, which a delta takes an N-th part of: an arrival moves the parameters by lr / N times the delta."""
    momentum: float
    """beta"""
    num_delay: int
    """N: deltas per change of the momentum."""
    correction: float = 0.0
    """c: share of the momentum that every delta applies; 0 applies all of it with every N-th."""

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate, self.momentum)
        if self.num_delay < 1:
            raise ValueError(f"num_delay counts deltas and must be at least 1, not {self.num_delay}")
        if not 0 <= self.correction <= 1 / self.num_delay:
            raise ValueError(f"correction must lie between 0 and 1 / num_delay, not at {self.correction}")

    def init(self, parameters: Mapping[str, torch.Tensor]) -> RuleState:
        """`upcoming` (u), and where a correction applies it in between `momentum` (m)."""
        names = ("upcoming", "momentum") if self.correction else ("upcoming",)
        return RuleState(tensors={name: _zeros(parameters) for name in names})

    def update(
        self, parameters: Mapping[str, torch.Tensor], delta: Mapping[str, torch.Tensor], state: RuleState
    ) -> None:
        """Descend on `delta`."""
        _each(parameters, delta, state, self._turn if (state.step + 1) % self.num_delay == 0 else self._drift)

    def _turn(self, parameter: torch.Tensor, delta: torch.Tensor, own: dict[str, torch.Tensor]) -> None:
        momentum = own["upcoming"].add_(delta, alpha=1 / self.num_delay)
        self._descend(parameter, delta, momentum, 1 - self.correction * (self.num_delay - 1))
        if self.correction:
            own["momentum"].copy_(momentum)
        own["upcoming"].mul_(self.momentum)

    def _drift(self, parameter: torch.Tensor, delta: torch.Tensor, own: dict[str, torch.Tensor]) -> None:
        own["upcoming"].add_(delta, alpha=1 / self.num_delay)
        self._descend(parameter, delta, own.get("momentum"), self.correction)

    def _descend(
        self, parameter: torch.Tensor, delta: torch.Tensor, momentum: torch.Tensor | None, share: float
    ) -> None:
        if momentum is not None:
            parameter.add_(momentum, alpha=-self.learning_rate * share * self.momentum)
        parameter.add_(delta, alpha=-self.learning_rate / self.num_delay)
