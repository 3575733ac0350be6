"""How fast a worker samples, and what its life has come to."""

from dataclasses import dataclass, field

TOKENS_PER_SLICE = 8
"""Decoded of each answer before messages are looked at and weights may change."""
SMOOTHING = 0.3
"""Weight of the newest answers in the speed."""


@dataclass(slots=True)
class WorkerReport:
    """What a worker's life has come to so far."""

    num_sampled: int = 0
    num_tokens: int = 0
    """Of those answers."""
    num_taken: int = 0
    num_refused: int = 0
    idle_seconds: dict[str, float] = field(default_factory=dict[str, float])
    """By what was waited for: "hub", "weights" or "tasks"."""


class Pace:
    """Answers per second of decoding; 0 until the first one is finished."""

    def __init__(self) -> None:
        self.answers_per_second = 0.0
        self._seconds = 0.0

    def add(self, num_answers: int, seconds: float) -> None:
        """A slice of decoding took so long, and so many answers came to their end in it."""
        self._seconds += seconds
        if num_answers and self._seconds > 0:
            newest = num_answers / self._seconds
            usual = self.answers_per_second or newest
            self.answers_per_second = usual + SMOOTHING * (newest - usual)
            self._seconds = 0.0
