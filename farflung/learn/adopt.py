"""ADOPT (arXiv 2411.02853, algorithm 2): Adam that converges for any beta2, as a torch optimizer.

The gradient is divided by the root of the second moment of the steps *before* it, and the first moment is the mean of
these quotients. The first step only measures: it makes v = g^2 and leaves parameters alone. No bias is corrected.

    n = clip(g / max(sqrt(v), epsilon), by t^0.25)
    m = beta1 m + (1 - beta1) n
    x -= lr m
    v = beta2 v + (1 - beta2) g^2

Without the clip, values whose first gradient was almost zero (a token that the first batch lacked) would leap.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Adopt(torch.optim.Optimizer):
    """ADOPT with decoupled weight decay."""

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        clip_exponent: float | None = 0.25,
    ) -> None:
        """Make the optimizer; n is clipped to t to the power of `clip_exponent`, t counting updates, or not (None).

        Raises:
            ValueError: a negative rate or decay, an epsilon that is not above 0, or betas outside [0, 1).
        """
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative: they are {lr} and {weight_decay}")
        if not (eps > 0 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"eps must be above 0 and betas from 0 to below 1: they are {eps} and {betas}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "clip_exponent": clip_exponent,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        """One step on every parameter that has a gradient; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _step_one(parameter, parameter.grad, self._state_of(parameter), group)
        return loss

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _step_one(
    parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]
) -> None:
    num_steps = int(state["step"])
    state["step"] += 1
    first_moment, second_moment = state["exp_avg"], state["exp_avg_sq"]
    if num_steps == 0:
        second_moment.copy_(gradient).mul_(gradient)
        return
    beta1, beta2 = group["betas"]
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    normed = gradient / second_moment.sqrt().clamp_(min=group["eps"])
    if group["clip_exponent"] is not None:
        limit = num_steps ** group["clip_exponent"]
        normed.clamp_(-limit, limit)
    first_moment.lerp_(normed, 1 - beta1)
    parameter.add_(first_moment, alpha=-group["lr"])
    second_moment.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
