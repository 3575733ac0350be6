"""What a measurer needs of whatever has the weights, and what it has come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from farflung.systems.onebyte.steps import Step


class Learner(Protocol):
    """What has the weights."""

    def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
        """One byte for each of these slots of a round, at the present weights."""
        ...

    def add(self, steps: Sequence[Step]) -> None:
        """Move the weights."""
        ...

    def digest(self) -> bytes:
        """32 bytes that are the same on every machine that has added the same."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """What a measurer has come to."""

    num_rounds: int
    """Of the journal."""
    num_measured: int
    """Entries that this life has measured."""
    num_counted: int
    """Of those, the ones that stand in the journal."""
    is_over: bool
    epsilon: float | None = None
    """Of differential privacy, spent so far; None: nothing is private."""
    reason: str = ""
    """Why it measured no more before the run was over."""


@runtime_checkable
class Accounted(Protocol):
    """A learner that counts what it gives away of its data."""

    @property
    def epsilon(self) -> float:
        """Spent so far."""
        ...
