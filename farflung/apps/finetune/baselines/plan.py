"""What all baselines are told, and what they tell."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from farflung.learn.parameters import Tensors

Decay = Literal["constant", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to tune, and on what."""

    num_rounds: int
    """Steps; of FedAvg, rounds of local steps."""
    batch_size: int
    seed: str
    """Decides batches and directions."""
    tensors: tuple[str, ...] = ("all",)
    """Which tensors are tuned, as `choose_tensors` takes them."""
    decay: Decay = "constant"
    """Linear: the learning rate falls in a straight line to nothing."""

    def rate_share(self, round_number: int) -> float:
        """Of the full learning rate in this round."""
        return 1.0 if self.decay == "constant" else 1.0 - round_number / self.num_rounds

    def number(self, purpose: str) -> int:
        """A number for a purpose that follows from the seed, below 2^63."""
        digest = hashlib.blake2b(f"{self.seed}:{purpose}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """After a round."""

    round_number: int
    """Rounds that are done."""
    num_rounds: int
    loss: float
    """Mean over the round's batches, before each step."""
    num_forwards: int
    """Forward passes over a batch so far."""
    num_backwards: int
    """Backward passes over a batch so far; each takes about as long as two forward passes."""
    num_bytes: int
    """Sent over the network so far, by all machines together; nothing where there is one."""
    model: Any
    """As it is now."""
    state: "Callable[[], Tensors]"
    """What is needed, beside the base model, to go on from here; the tensors may be the live ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How far an interrupted run had come: it goes on from here as if nothing had been."""

    round_number: int
    """Rounds that were done."""
    num_bytes: int
    """As `Progress`."""
    state: "Tensors"
    """As `Progress`."""


Tell = Callable[[Progress], object]
"""Hears of every round."""
