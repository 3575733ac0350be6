"""What is averaged how often: the policies that a program chooses from, each one setting of the same engine."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from farflung.learn.optimizer_config import FIRST_MOMENT, SECOND_MOMENT
from farflung.learn.rules import Descent, Nesterov, Rule
from farflung.systems.desync.config import DesyncConfig, RoundConfig

STEPS_WITHOUT_END = 1 << 53
"""The budget of a run whose end is the program's own affair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What all policies have in common. All members of a run need the same one."""

    parameters_every: int = 32
    """K_x: optimizer steps between two averages of the parameters."""
    outer: Rule = field(default_factory=Descent)
    """What is done with the mean change of the parameters; by default the mean itself is taken."""
    codec: str = "raw"
    """How changes of parameters travel: raw, fp16, int8, int4 or int2; what a lossy one leaves out is sent later."""
    moment_codec: str = "raw"
    """How optimizer moments travel."""
    average_before: Literal["gradient", "update"] = "gradient"
    """Whether an average comes before a step's gradient, which is then the gradient at the mean, or, as in DES-LOC's
    listing, between gradient and update, which then moves the mean by a gradient from before it."""
    sites_min: int = 2
    """A run does not begin, and no round is held, with fewer sites."""
    round_seconds_max: float = 300.0
    """After the first site's arrival a round waits so long for the others, and goes on without the missing."""

    def __post_init__(self) -> None:
        if self.average_before not in ("gradient", "update"):
            raise ValueError(f"average_before is gradient or update, not {self.average_before!r}")
        self.engine_config((FIRST_MOMENT, SECOND_MOMENT))  # it checks everything else

    def moments_every(self, moments: Iterable[str]) -> dict[str, int]:
        """Period of each moment that is averaged at all."""
        return {}

    def engine_config(self, moments: Iterable[str]) -> DesyncConfig:
        """The engine's settings for an optimizer with these moments."""
        return DesyncConfig(
            num_worker_steps=STEPS_WITHOUT_END,
            parameters_every=self.parameters_every,
            moments_every=self.moments_every(moments),
            outer=self.outer,
            codec=self.codec,
            moment_codec=self.moment_codec,
            rounds=RoundConfig(
                quorum=self.sites_min,
                num_members_at_start=self.sites_min,
                deadline_seconds=self.round_seconds_max,
            ),
        )

    def describe(self) -> str:
        """All settings, for comparison and for people."""
        settings = ", ".join(f"{entry.name}={getattr(self, entry.name)!r}" for entry in dataclasses.fields(self))
        return f"{type(self).__name__}({settings})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DesLoc(Policy):
    """DES-LOC (arXiv 2505.22549): parameters and moments at periods of their own."""

    first_moment_every: int | None = None
    """K_u; None: 3 K_x. Of torch's `exp_avg` and `momentum_buffer`, and of all that is no mean of squares."""
    second_moment_every: int | None = None
    """K_v; None: 6 K_x. Of torch's `exp_avg_sq`, and of every state with `sq` in its name."""
    periods: Mapping[str, int] = field(default_factory=dict[str, int])
    """Periods of single moments by name (one that is neither first nor second has the optimizer's name for it, such as
    `max_exp_avg_sq`), instead of those above."""

    def moments_every(self, moments: Iterable[str]) -> dict[str, int]:
        """Each moment's own period."""
        first = self.first_moment_every or 3 * self.parameters_every
        second = self.second_moment_every or 6 * self.parameters_every
        return {name: self.periods.get(name, second if is_second(name) else first) for name in moments}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAdam(Policy):
    """Parameters and all moments together."""

    def moments_every(self, moments: Iterable[str]) -> dict[str, int]:
        """The period of the parameters."""
        return dict.fromkeys(moments, self.parameters_every)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiLoCo(Policy):
    """DiLoCo (arXiv 2311.08105): moments stay where they are; the mean change goes through an outer Nesterov step."""

    outer: Rule = field(default_factory=lambda: Nesterov(learning_rate=0.7, momentum=0.9))


def is_second(moment: str) -> bool:
    """Whether a moment is a mean of squares."""
    return moment == SECOND_MOMENT or "sq" in moment.split("_")
