"""How long the device waits for sessions that are about to be back with their next step (pure).

A batch takes hardly longer with a few sessions more, so whoever comes right after one has begun waits for nearly two.
"""

from collections.abc import Iterable
from dataclasses import dataclass

SMOOTHING = 0.25
NUM_DEVIATIONS = 2.0
SECONDS_MAX = 0.2
"""A longer absence is a pause and counts as so long: it is soon forgotten."""


@dataclass(slots=True)
class ReturnTime:
    """How long a session takes from an output to its next step, estimated as TCP does round trips (Jacobson, SIGCOMM
    1988)."""

    mean_seconds: float | None = None
    deviation_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """It took so long this time."""
        seconds = min(seconds, SECONDS_MAX)
        if self.mean_seconds is None:
            self.mean_seconds, self.deviation_seconds = seconds, seconds / 2
            return
        error = seconds - self.mean_seconds
        self.mean_seconds += SMOOTHING * error
        self.deviation_seconds += SMOOTHING * (abs(error) - self.deviation_seconds)

    def latest_seconds(self, default: float) -> float:
        """It rarely takes longer; `default` as long as nothing is known."""
        if self.mean_seconds is None:
            return default
        return self.mean_seconds + NUM_DEVIATIONS * self.deviation_seconds


def compute_at(now: float, num_waiting: int, returns_at: Iterable[float], batch_seconds: float) -> float:
    """The moment to begin a batch, so that most sessions are served per second: `num_waiting` could be computed now,
    others are expected at `returns_at`."""
    best_at, best_rate = now, num_waiting / max(batch_seconds, 1e-9)
    for number, moment in enumerate(sorted(moment for moment in returns_at if moment > now), num_waiting + 1):
        rate = number / (moment - now + batch_seconds)
        if rate > best_rate:
            best_at, best_rate = moment, rate
    return best_at
