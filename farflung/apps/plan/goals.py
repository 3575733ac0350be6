"""What a plan is for, as [goal] of its file says: to serve, to pretrain, to fine-tune, to align."""

import math
from dataclasses import dataclass

from farflung.apps.finetune.advice import FORWARD_PASSES
from farflung.apps.finetune.swarm.settings import MICRO_BATCH_TOKENS

USERS_MAX = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeGoal:
    """[goal] kind = "serve"."""

    users: int = 1
    """Who are answered at the same time."""
    tokens_per_second: float = 5.0
    """That each of them is to see."""
    prompt_tokens: int = 512
    answer_tokens: int = 256
    users_at: tuple[str, ...] = ()
    """Sites where they are, in turn; none: everywhere."""
    client_ms: float = 10.0
    """Embeddings, head and choice of a token, on the user's machine."""

    def __post_init__(self) -> None:
        check_counts(self, "users", "prompt_tokens", "answer_tokens")
        check_positive(self, "tokens_per_second")
        check_not_negative(self, "client_ms")
        if self.users > USERS_MAX:
            raise ValueError(f"a plan takes up to {USERS_MAX} users at the same time, not {self.users}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainGoal:
    """[goal] kind = "pretrain"."""

    tokens: int = 1_000_000_000
    """Of all machines together."""
    sequence_length: int = 1024
    batch_size: int = 8
    """Sequences of one machine at a time."""
    days_max: float | None = None
    """By when it is to be done."""
    methods: tuple[str, ...] = ()
    """To compare; none: all."""

    def __post_init__(self) -> None:
        check_counts(self, "tokens", "sequence_length", "batch_size")
        check_days(self.days_max)
        if self.tokens < self.tokens_per_step:
            raise ValueError(f"tokens = {self.tokens} is less than one step of one machine ({self.tokens_per_step})")

    @property
    def tokens_per_step(self) -> int:
        """Of one machine."""
        return self.sequence_length * self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneGoal:
    """[goal] kind = "finetune"."""

    examples: int = 10_000
    """To learn from."""
    sequence_length: int = 256
    """Tokens of an example."""
    batch_size: int = 16
    """Examples of an update."""
    epochs: float = 1.0
    """How often each is learned from, by methods with gradients."""
    updates: int | None = None
    """Of methods with gradients; None: what the epochs have."""
    forwards_per_update: int = FORWARD_PASSES[1]
    """Forward passes over a batch that methods without gradients need for each such update."""
    num_slots: int | None = None
    """Measurements of a round of one byte; None: as many as keep all machines busy."""
    rank: int = 8
    """Of LoRA's factors, in every linear layer."""
    micro_batch_tokens: int = MICRO_BATCH_TOKENS
    """Of pieces in which a batch travels through block servers."""
    days_max: float | None = None
    """By when it is to be done."""
    methods: tuple[str, ...] = ()
    """To compare; none: all."""

    def __post_init__(self) -> None:
        check_counts(self, "examples", "sequence_length", "batch_size", "forwards_per_update", "rank")
        check_counts(self, "micro_batch_tokens")
        check_positive(self, "epochs")
        for name in ("updates", "num_slots"):
            if getattr(self, name) is not None:
                check_counts(self, name)
        check_days(self.days_max)

    @property
    def num_updates(self) -> int:
        """Of methods with gradients."""
        return self.updates or math.ceil(self.epochs * self.examples / self.batch_size)

    @property
    def num_measurements(self) -> int:
        """Of methods without: pairs of forward passes."""
        return math.ceil(self.num_updates * self.forwards_per_update / 2)

    @property
    def tokens_per_batch(self) -> int:
        return self.batch_size * self.sequence_length

    @property
    def tokens(self) -> int:
        """That are learned from, whatever the method."""
        return self.num_updates * self.tokens_per_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignGoal:
    """[goal] kind = "align"."""

    updates: int = 200
    """Optimizer steps."""
    prompts_per_update: int = 16
    answers_per_prompt: int = 8
    prompt_tokens: int = 256
    answer_tokens: int = 256
    adapter_rank: int = 0
    """Above 0: train, and send to the workers, a LoRA adapter of this rank alone."""
    staleness_max: int = 1
    """S: updates that weights may be old when what they sampled is trained on."""
    changed_share: float = 0.05
    """Of the weights, in bfloat16, that an update changes: measured, 0.05 at a learning rate of 3e-6, 0.02 at 1e-6."""
    days_max: float | None = None
    """By when it is to be done."""
    methods: tuple[str, ...] = ()
    """To compare; none: all."""

    def __post_init__(self) -> None:
        check_counts(self, "updates", "prompts_per_update", "answers_per_prompt", "prompt_tokens", "answer_tokens")
        check_counts(self, "staleness_max")
        check_not_negative(self, "adapter_rank")
        if not 0 < self.changed_share <= 1:
            raise ValueError("changed_share is a share above 0 and at most 1")
        check_days(self.days_max)

    @property
    def answers_per_update(self) -> int:
        return self.prompts_per_update * self.answers_per_prompt

    @property
    def tokens(self) -> int:
        """That are sampled."""
        return self.updates * self.answers_per_update * self.answer_tokens


Goal = ServeGoal | PretrainGoal | FinetuneGoal | AlignGoal
GOALS: dict[str, type[Goal]] = {
    "serve": ServeGoal,
    "pretrain": PretrainGoal,
    "finetune": FinetuneGoal,
    "align": AlignGoal,
}


def check_positive(settings: object, *names: str) -> None:
    """Refuse what is not above 0, or infinite."""
    for name in names:
        if not 0 < getattr(settings, name) < math.inf:
            raise ValueError(f"{name} must be positive and finite")


def check_not_negative(settings: object, *names: str) -> None:
    """Refuse what is below 0, or infinite."""
    for name in names:
        if not 0 <= getattr(settings, name) < math.inf:
            raise ValueError(f"{name} must be finite and not negative")


def check_counts(settings: object, *names: str) -> None:
    """Refuse what is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1")


def check_days(days_max: float | None) -> None:
    """Refuse a time that nothing can be done in."""
    if days_max is not None and not 0 < days_max < math.inf:
        raise ValueError("days_max must be positive and finite")
