"""Learning-rate schedules over progress: the share of the run's data that all workers together have been through.

Progress is of the whole run, so a worker whose parameters are stale still takes the rate of the present. A rate at
progress 0 with a warm-up is 0: ask for the progress at a step's end, and no step is lost.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[float], float]
"""From progress (0 to 1; beyond is taken as the nearer end) to the factor that multiplies the learning rate."""


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share between 0 and 1, not {share}")


def _clamped(progress: float) -> float:
    return min(max(progress, 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Constant:
    """The same rate throughout."""

    def __call__(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """A linear warm-up, then half a cosine from 1 down to the floor (arXiv 1608.03983, without restarts)."""

    warmup: float = 0.05
    """Share of the run."""
    floor: float = 0.1
    """Factor at the end."""

    def __post_init__(self) -> None:
        _check_shares(warmup=self.warmup, floor=self.floor)

    def __call__(self, progress: float) -> float:
        progress = _clamped(progress)
        if progress < self.warmup:
            return progress / self.warmup
        descended = (progress - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 0.0
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * descended)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupStableDecay:
    """A linear warm-up, a long stretch at 1, and a linear decay to the floor at the end (arXiv 2404.06395)."""

    warmup: float = 0.05
    """Share of the run."""
    decay: float = 0.2
    """Share of the run."""
    floor: float = 0.0
    """Factor at the end."""

    def __post_init__(self) -> None:
        _check_shares(warmup=self.warmup, decay=self.decay, floor=self.floor)
        if self.warmup + self.decay > 1:
            raise ValueError(f"a warm-up of {self.warmup} and a decay of {self.decay} do not fit into one run")

    def __call__(self, progress: float) -> float:
        progress = _clamped(progress)
        if progress < self.warmup:
            return progress / self.warmup
        if progress <= 1 - self.decay:
            return 1.0
        return self.floor + (1 - self.floor) * (1 - progress) / self.decay
