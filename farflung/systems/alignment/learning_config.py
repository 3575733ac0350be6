"""What one can set on learning from answers: the loss, the optimizer, and when somebody is told; read without torch."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from farflung.learn.optimizer_config import OptimizerConfig

LOSS_NAMES = (
    "dppo",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "decoupled",
    "two_sided",
    "truncated",
    "masked",
    "reinforce",
)
"""Their formulas: `losses`."""
Averaging = Literal["token", "sequence", "constant"]
"""Over all tokens; over each answer's own tokens, then over answers; over answers times a constant length."""

PROBABILITY_MOVED_MAX = 0.2
SQUARED_LOG_RATIO_WEIGHT = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Which loss, and its settings; each loss uses those that it knows."""

    name: str = "dppo"
    averaging: Averaging = "token"
    length_tokens: int = 0
    """What "constant" divides by: the longest answer that may be asked for."""
    clip_low: float = 0.2
    """epsilon: ratios below 1 - clip_low earn nothing more (of gspo, a ratio of whole answers)."""
    clip_high: float = 0.2
    """epsilon of DAPO's "clip higher": the same above 1."""
    ratio_max: float = 2.0
    """Cap of truncated weights (C), of cispo, of decoupled's mu correction, and delta of the two-sided clip."""
    ratio_min: float = 0.5
    """Of masked importance sampling: tokens with ratios outside [ratio_min, ratio_max] are left out."""
    probability_moved_max: float = PROBABILITY_MOVED_MAX
    """Of dppo: tokens whose probability has moved further than this in the advantage's direction are left out."""
    squared_log_ratio_weight: float = SQUARED_LOG_RATIO_WEIGHT
    """Of dppo: weight of log(r)^2, which draws the policy back to the sampler's."""
    reference_weight: float = 0.0
    """beta: weight of the KL divergence to a reference policy; 0 needs no reference."""
    is_scaled: bool = False
    """Whether advantages are divided by their group's standard deviation (GRPO)."""

    def __post_init__(self) -> None:
        if self.name not in LOSS_NAMES:
            raise ValueError(f"unknown loss {self.name!r}; there are {', '.join(LOSS_NAMES)}")
        if self.averaging not in get_args(Averaging):
            raise ValueError(f"averaging must be one of {', '.join(get_args(Averaging))}, not {self.averaging!r}")
        if self.averaging == "constant" and self.length_tokens < 1:
            raise ValueError("averaging over a constant length needs length_tokens, the longest answer's tokens")
        if not (0 < self.clip_low < 1 and self.clip_high > 0):
            raise ValueError("clip_low must be between 0 and 1 and clip_high above 0")
        if not 0 <= self.ratio_min < 1 <= self.ratio_max:
            raise ValueError("ratio_min must be below 1 and ratio_max at least 1")
        if not 0 < self.probability_moved_max <= 1:
            raise ValueError("probability_moved_max must be above 0 and at most 1")
        if self.squared_log_ratio_weight < 0 or self.reference_weight < 0:
            raise ValueError("weights of penalties must not be negative")


_PUBLISHED: dict[str, dict[str, Any]] = {
    "grpo": {"averaging": "sequence", "is_scaled": True},
    "dr_grpo": {"averaging": "constant"},
    "dapo": {"clip_high": 0.28, "is_scaled": True},
    "gspo": {"averaging": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "is_scaled": True},
    "cispo": {"ratio_max": 5.0},
    "decoupled": {"ratio_max": 5.0},
    "two_sided": {"ratio_max": 4.0},
    "masked": {"ratio_max": 5.0},
}
"""What their authors set otherwise than `LossConfig`'s defaults."""


def published(name: str, *, length_tokens: int) -> LossConfig:
    """A loss with its authors' settings; `length_tokens` is the longest answer.

    Raises:
        ValueError: there is no such loss.
    """
    config = LossConfig(name=name, length_tokens=length_tokens)
    return replace(config, **_PUBLISHED.get(name, {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmConfig:
    """Beyond which values a step raises an alarm."""

    mismatch_max: float = 0.1
    """KL of sampler and policy, nats per token: well above what a few steps of training move it."""
    sample_size_min: float = 0.3
    """Effective sample size as a share of the tokens."""
    left_out_max: float = 0.3
    """Share of tokens that the loss left out."""
    gradient_norm_max: float = 100.0
    length_ratio_min: float = 0.8
    """Of survivors to complete groups."""

    def __post_init__(self) -> None:
        if min(self.mismatch_max, self.sample_size_min, self.left_out_max, self.gradient_norm_max) <= 0:
            raise ValueError("the values of alarms must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """How a step is made."""

    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-6, weight_decay=0.0))
    passes: int = 1
    """Optimizer steps on each batch; with more than one, the policy at its start is the proximal one."""
    tokens_at_once: int = 16_384
    """Of prompt and answer, padding included: how much of a batch is computed at a time."""
    alarms: AlarmConfig = field(default_factory=AlarmConfig)

    def __post_init__(self) -> None:
        if self.passes < 1 or self.tokens_at_once < 1:
            raise ValueError("passes and tokens_at_once must be at least 1")
