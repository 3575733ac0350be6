"""[method] of name = "prompt" or "lora": what is trained, by which steps, and how it travels."""

from dataclasses import dataclass
from typing import Literal

from farflung.learn.schedule import Constant, Cosine, Schedule, WarmupStableDecay

MICRO_BATCH_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmSettings:
    """What both methods have."""

    learning_rate: float
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 1.0
    """Longest gradient; 0: any."""
    warmup: float = 0.05
    """Share of the rounds in which the learning rate rises."""
    decay: Literal["constant", "linear", "cosine"] = "linear"
    """How it falls after that."""
    gradient_accumulation: int = 1
    """A round's batch is computed in so many parts, one after another, and stepped once."""
    micro_batch_tokens: int = MICRO_BATCH_TOKENS
    """A part travels in pieces of whole rows of about so many tokens, all at the same time."""
    codec: Literal["raw", "fp16", "bf16", "int8"] = "raw"
    """How hidden states and their gradients travel: only raw is exact."""
    wait_seconds_max: float = 60.0
    """For blocks that no server holds at the moment."""

    def check_steps(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: says what.
        """
        if not (self.learning_rate > 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError("method: learning_rate must be above 0, and beta1 and beta2 at least 0 and below 1")
        if self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError("method: weight_decay and clip_norm must not be negative")
        if not 0 <= self.warmup < 1:
            raise ValueError("method: warmup is a share of the rounds, at least 0 and below 1")
        if min(self.gradient_accumulation, self.micro_batch_tokens) < 1 or not self.wait_seconds_max > 0:
            raise ValueError("method: gradient_accumulation, micro_batch_tokens and wait_seconds_max must be above 0")

    @property
    def schedule(self) -> Schedule:
        """Of the learning rate, over the share of rounds that are done."""
        if self.decay == "cosine":
            return Cosine(warmup=self.warmup, floor=0.0)
        if self.decay == "linear":
            return WarmupStableDecay(warmup=self.warmup, decay=1.0 - self.warmup)
        return WarmupStableDecay(warmup=self.warmup, decay=0.0) if self.warmup else Constant()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSettings(SwarmSettings):
    """[method] of name = "prompt" (prompt tuning, arXiv 2104.08691; deep: arXiv 2110.07602)."""

    learning_rate: float = 3e-2
    num_tokens: int = 16
    """Trained positions before every text."""
    is_deep: bool = False
    """Add trained vectors to them at every block too."""
    initial: Literal["vocabulary", "random"] = "vocabulary"
    """Begin with embeddings of words drawn from the vocabulary, or with small random vectors."""

    def __post_init__(self) -> None:
        self.check_steps()
        if self.num_tokens < 1:
            raise ValueError("method.num_tokens must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings(SwarmSettings):
    """[method] of name = "lora" (arXiv 2106.09685), in every block of the model."""

    learning_rate: float = 1e-3
    rank: int = 8
    alpha: float = 16.0
    """The product of the factors counts alpha / rank."""
    is_rank_stabilized: bool = False
    """It counts alpha / the root of the rank (arXiv 2312.03732)."""
    modules: tuple[str, ...] = ("all-linear",)
    """Ends of the names of layers that are adapted, such as q_proj and v_proj; all-linear: all of them."""

    def __post_init__(self) -> None:
        self.check_steps()
        if self.rank < 1 or not self.alpha > 0 or not self.modules:
            raise ValueError("method: rank must be at least 1, alpha above 0, and modules must name some layers")

    @property
    def targets(self) -> tuple[str, ...] | str:
        """As adapters take them."""
        return self.modules[0] if self.modules == ("all-linear",) else self.modules
