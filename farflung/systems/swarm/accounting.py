"""What a block server's device has been used for: answers to sessions, tuning, and standing by (pure).

Sessions come first, and tuning takes what they leave (see `batching.py`); what each has had is announced, so that who
lends a machine sees whom it served.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec


class Spent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Since the server started."""

    seconds: float = 0.0
    """Of the device."""
    num_tokens: int = 0
    """Computed, each through all blocks that were asked for; one that went forward and backward counts twice."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.num_tokens + other.num_tokens)

    @property
    def is_possible(self) -> bool:
        """Whether a server can have spent this."""
        return 0 <= self.seconds < math.inf and self.num_tokens >= 0


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By kind."""

    serving: Spent = Spent()
    tuning: Spent = Spent()
    standing_by: Spent = Spent()

    def kinds(self) -> Iterator[tuple[str, Spent]]:
        """Every kind by the name that people are shown."""
        yield "serving", self.serving
        yield "tuning", self.tuning
        yield "standing by", self.standing_by

    def __add__(self, other: Work) -> Work:
        return Work(self.serving + other.serving, self.tuning + other.tuning, self.standing_by + other.standing_by)

    def __str__(self) -> str:
        """Shares of the time in which the device computed: "serving 75%, tuning 25%"; empty before the first."""
        total = sum(spent.seconds for _, spent in self.kinds())
        return ", ".join(f"{kind} {spent.seconds / total:.0%}" for kind, spent in self.kinds() if spent.seconds)
