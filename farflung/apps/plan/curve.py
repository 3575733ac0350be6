"""How a simulated training run went: steps and loss over its time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """One moment of a run."""

    seconds: float
    num_steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Loss over the time of a run."""

    points: list[Point]

    @property
    def final(self) -> Point:
        """The end."""
        return self.points[-1]

    def seconds_to(self, loss: float) -> float:
        """When the loss first was so low, between two points on a line; infinity if never."""
        for before, after in itertools.pairwise(self.points):
            if after.loss <= loss:
                share = (before.loss - loss) / (before.loss - after.loss) if before.loss > loss else 0.0
                return before.seconds + share * (after.seconds - before.seconds)
        return float("inf")
