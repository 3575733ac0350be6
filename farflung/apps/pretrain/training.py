"""[training] of a run file: batches, budget, optimizer and schedule."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from farflung.learn.optimizer_config import OptimizerConfig
from farflung.learn.schedule import Constant, Cosine, WarmupStableDecay


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """[training.schedule]: the learning rate over the run; lengths are shares of the budget."""

    name: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: float = 0.05
    decay: float = 0.2
    """Of wsd: how much of the end it falls over."""
    floor: float = 0.1
    """Where it ends, as a share of the highest."""

    def __post_init__(self) -> None:
        for name, value in (("warmup", self.warmup), ("decay", self.decay), ("floor", self.floor)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {value}")
        self.factor()

    def factor(self) -> Callable[[float], float]:
        """Progress in [0, 1] -> factor of the learning rate."""
        if self.name == "constant":
            return Constant()
        if self.name == "wsd":
            return WarmupStableDecay(warmup=self.warmup, decay=self.decay, floor=self.floor)
        return Cosine(warmup=self.warmup, floor=self.floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """[training]: what every worker does."""

    sequence_length: int = 64
    batch_size: int = 8
    """Sequences of one worker at a time."""
    num_micro_batches: int = 1
    """Batches that make one step."""
    tokens: int = 1_000_000
    """The budget of all workers together."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    num_validation_sequences: int = 64
    """Held out from the end of the data; the final model is scored on them."""
    joiners_max: int = 0
    """Workers beyond those of the file that may join each region; the data is cut for them from the start."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps or auto."""
    checkpoint_seconds: float = 300.0
    """How often every worker saves what a resumed run needs; it also does when it is stopped."""
    num_threads: int = 1
    """Of the processor, for each worker."""

    def __post_init__(self) -> None:
        names = (
            "sequence_length",
            "batch_size",
            "num_micro_batches",
            "tokens",
            "num_validation_sequences",
            "num_threads",
        )
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not self.checkpoint_seconds > 0:
            raise ValueError("checkpoint_seconds must be positive")
        if self.joiners_max < 0:
            raise ValueError("joiners_max must not be negative")

    def check_ranks(self, num_ranks: int) -> None:
        """Refuse processes that cannot share a worker's batches equally.

        Raises:
            ValueError: names both numbers.
        """
        if self.batch_size % num_ranks:
            raise ValueError(
                f"training.batch_size = {self.batch_size} cannot be shared equally by {num_ranks} ranks: choose a "
                f"multiple of {num_ranks}, or another number of ranks"
            )

    @property
    def tokens_per_step(self) -> int:
        """Of one worker."""
        return self.sequence_length * self.batch_size * self.num_micro_batches
