"""When each of parameters and moments is due for averaging (pure; DES-LOC, arXiv 2505.22549, listing and section 4).

Steps are counted from 0; what is due at step t is averaged before that step. At step 0 all replicas are equal, so
nothing is due. `Cadence` answers by periods (t % K == 0) or, with a coin, by independent flips with probability 1 / K
that every member makes alike, because they are hashes of the run's name, the state's name and the step.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

PARAMETERS = "parameters"
GRADIENTS = "gradients"
SITE_PARAMETERS = "site"
"""The parameters, averaged among the members of each site."""
FRAGMENT_SEPARATOR = "/"
STEPS_AHEAD_MAX = 1 << 20
"""A coin that lands nowhere within so many steps is taken to land there."""


def fragment_name(number: int, num_fragments: int) -> str:
    """What a stretch of the parameters is called: `parameters/2`, or `parameters` if it is all of them."""
    return PARAMETERS if num_fragments == 1 else f"{PARAMETERS}{FRAGMENT_SEPARATOR}{number}"


def is_parameters(name: str) -> bool:
    """Whether a state is the parameters or a fragment of them."""
    return name.split(FRAGMENT_SEPARATOR, maxsplit=1)[0] == PARAMETERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """The period of each averaged state."""

    periods: Mapping[str, int] = field(default_factory=dict[str, int])
    """K by name (`parameters`, `first_moment` ...), in steps; what has none is never averaged."""
    offsets: Mapping[str, int] = field(default_factory=dict[str, int])
    """By name, if not 0: it is due at the steps t with t % K == offset."""
    coin: str | None = None
    """With a name, the probabilistic form: p = 1 / K at every step."""

    def __post_init__(self) -> None:
        for name, period in self.periods.items():
            if period < 1:
                raise ValueError(f"The period of {name} must be at least 1 step, not {period}.")

    def due(self, step: int) -> tuple[str, ...]:
        """Names of what is averaged before `step`, in the order of `periods`."""
        due = [name for name, period in self.periods.items() if step > 0 and self._is_due(name, period, step)]
        return self._needed(due)

    @property
    def everything(self) -> tuple[str, ...]:
        """All that is ever averaged, as the last round does."""
        return self._needed(list(self.periods))

    def _needed(self, due: list[str]) -> tuple[str, ...]:
        """Averaging within sites what is averaged over all of them at the same time would be in vain."""
        is_all = all(name in due for name in self.periods if is_parameters(name))
        return tuple(name for name in due if name != SITE_PARAMETERS or not is_all)

    def next_due(self, step: int) -> int:
        """The first step after `step` at which anything is due."""
        if not self.periods:
            return step + STEPS_AHEAD_MAX
        if self.coin is None:
            return min(self._next_multiple(name, period, step) for name, period in self.periods.items())
        ahead = range(step + 1, step + STEPS_AHEAD_MAX)
        return next((later for later in ahead if self.due(later)), step + STEPS_AHEAD_MAX)

    def _next_multiple(self, name: str, period: int, step: int) -> int:
        offset = self.offsets.get(name, 0)
        return (step - offset) // period * period + period + offset

    def _is_due(self, name: str, period: int, step: int) -> bool:
        if self.coin is None:
            return step % period == self.offsets.get(name, 0)
        digest = hashlib.blake2b(f"{self.coin}\0{name}\0{step}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") < (1 << 64) // period


def half_life_steps(decay: float) -> float:
    """Steps after which a moment has forgotten half of what it was: ln .5 / ln beta; 13.5 for .95, 693 for .999."""
    return math.log(0.5) / math.log(decay) if decay > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Chosen periods, and why."""

    parameters_every: int
    moments_every: Mapping[str, int]
    reason: str


def choose_periods(
    step_seconds: float,
    exchange_seconds: float,
    decays: Mapping[str, float],
    *,
    exchange_share_max: float = 0.1,
    parameters_every_max: int = 512,
    multiple_of: int = 1,
) -> Choice:
    """Periods from measured times and the moments' decays.

    Parameters as often as `exchange_share_max` of the time allows; a moment about once in its half-life, together with
    parameters, and never more often than those.
    """
    wanted = math.ceil(exchange_seconds / max(exchange_share_max * step_seconds, 1e-12) / multiple_of) * multiple_of
    every = max(multiple_of, min(wanted, parameters_every_max // multiple_of * multiple_of))
    reason = (
        f"an exchange takes {exchange_seconds:.3g} s and a step {step_seconds:.3g} s: every {every} steps it costs "
        f"{exchange_seconds / max(every * step_seconds, 1e-12):.0%} of the time; moments at their half-lives"
    )
    return Choice(every, moment_periods(every, decays), reason)


def moment_periods(every: int, decays: Mapping[str, float]) -> dict[str, int]:
    """For each moment the multiple of the parameters' period that is nearest to its half-life."""
    return {name: every * max(1, round(half_life_steps(beta) / every)) for name, beta in decays.items()}


def choose_by_drift(
    every: int,
    drift: float,
    decays: Mapping[str, float],
    *,
    drift_max: float,
    parameters_every_min: int = 1,
    parameters_every_max: int = 512,
    multiple_of: int = 1,
) -> Choice:
    """Periods that let replicas drift apart by about `drift_max` until they are averaged, from the `drift` that was
    measured after `every` steps; both relative to the parameters' norm.

    Drift grows with the steps, as their root at least and in proportion at most, so that in either case repeated
    choices converge; one choice at most doubles or halves the period.
    """
    factor = min(2.0, max(0.5, drift_max / max(drift, 1e-12)))
    wanted = round(every * factor / multiple_of) * multiple_of
    chosen = max(multiple_of, min(max(wanted, parameters_every_min), parameters_every_max) // multiple_of * multiple_of)
    reason = f"replicas were {drift:.2%} apart after {every} steps and may be {drift_max:.2%}"
    if wanted < parameters_every_min:
        reason += f"; more often than every {chosen} would cost too much time"
    return Choice(chosen, moment_periods(chosen, decays), reason)


def scaled_steps(num_steps: int, speed: float, speed_max: float) -> int:
    """Steps of a worker while the fastest makes `num_steps`: max(1, ceil(H speed / speed_max))."""
    # A speed that was measured may be a rounding error above a whole number of steps.
    return max(1, math.ceil(num_steps * speed / speed_max - 1e-6))
