"""What trains in a simulation where nothing is to be learned, and the workers that it is on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from farflung.learn.parameters import Tensors


class WorkerPlace(NamedTuple):
    """One worker of a simulated cluster."""

    name: str
    site: str
    speed: float
    """Of the fastest worker's, at most 1."""


@dataclass(frozen=True, slots=True)
class Walked:
    """What some steps of a toy came to."""

    num_steps: int
    num_tokens: int = 0
    loss: float = 0.0


class StandIn:
    """A model of zeros that walks a little with every step, with Adam's moments: for counting bytes and seconds.

    Engines treat it as any learner, and it takes the place of a model of any size: links are as much narrower as it is
    smaller.
    """

    def __init__(self, num_values: int) -> None:
        self.parameters: Tensors = {"values": torch.zeros(num_values)}
        self.moments: dict[str, Tensors] = {
            name: {"values": torch.zeros(num_values)} for name in ("first_moment", "second_moment")
        }
        self.num_steps = 0

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Walked:
        """Make local steps."""
        self.parameters["values"].add_(1e-3 * num_steps)
        self.num_steps += num_steps
        return Walked(num_steps)

    def compute_gradients(self) -> Walked:
        """As `GradientLearner.compute_gradients`."""
        self.parameters["values"].grad = torch.full_like(self.parameters["values"], 1e-3)
        self.num_steps += 1
        return Walked(1)

    def apply(self, progress: float) -> None:
        """As `GradientLearner.apply`."""
        gradient = self.parameters["values"].grad
        assert gradient is not None
        self.parameters["values"].sub_(gradient)
