"""What one can set on an inner optimizer, and the names of its moments; read without torch."""

from dataclasses import dataclass
from typing import Literal, get_args

OptimizerName = Literal["adamw", "adam", "sgd", "muon", "adopt"]

FIRST_MOMENT = "first_moment"
SECOND_MOMENT = "second_moment"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """An inner optimizer and its settings; each uses those that it knows."""

    name: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    """Before the schedule's factor."""
    beta1: float = 0.9
    """Decay of the first moment (Adam, AdamW, ADOPT, and what Muon leaves to AdamW)."""
    beta2: float = 0.95
    """Decay of the second moment; ADOPT's authors use 0.9999."""
    momentum: float = 0.95
    """Of SGD (heavy ball) and Muon (Nesterov)."""
    weight_decay: float = 0.1
    """On parameters of two or more dimensions: decoupled (AdamW, Muon, ADOPT) or added to the gradient (Adam, SGD)."""
    epsilon: float = 1e-8
    """Least divisor of Adam, AdamW and ADOPT."""
    clip_norm: float | None = 1.0
    """Longer gradients are shortened to this norm; None leaves them."""

    def __post_init__(self) -> None:
        if self.name not in get_args(OptimizerName):
            raise ValueError(f"unknown optimizer {self.name!r}; there are {', '.join(get_args(OptimizerName))}")
        if self.learning_rate <= 0 or self.epsilon <= 0 or self.weight_decay < 0:
            raise ValueError("learning_rate and epsilon must be above 0, and weight_decay not negative")
        if not all(0 <= value < 1 for value in (self.beta1, self.beta2, self.momentum)):
            raise ValueError("beta1, beta2 and momentum must be at least 0 and below 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be above 0, not {self.clip_norm}; leave it out to clip nothing")
