"""What one can set on a run: which states are averaged when, by which rule, over which ways, and how patiently.

Every synchronous method is one `DesyncConfig`; `ddp`, `local_adam`, `diloco`, `desloc` and `farflung` name the usual
ones, and each takes all other settings too.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from farflung.learn.codecs import SIGNED_CODECS
from farflung.learn.rules import Descent, Nesterov, Rule
from farflung.systems.desync.cadence import GRADIENTS, SITE_PARAMETERS, Cadence, fragment_name
from farflung.systems.desync.routes import ALIGNMENT_VALUES

WEIGHTS = ("members", "steps", "tokens", "speed")
TOPOLOGIES = ("ring", "two-level", "star")
ADAM_MOMENTS = ("first_moment", "second_moment")
AUTO = "auto"
PERIODS = ("fixed", AUTO, "drift")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundConfig:
    """How patient rounds are."""

    quorum: int = 1
    """No round has fewer members."""
    num_members_at_start: int = 1
    """The run begins once so many have joined, or a quorum at the deadline after the first: who comes later must be
    given the state."""
    deadline_seconds: float = 60.0
    """After the first member's arrival a round waits so long for the others."""
    exchange_seconds_max: float = 600.0
    """An exchange that has not come to an end is abandoned, and formed anew."""
    ask_again_seconds: float = 10.0
    """Without an answer for so long, ask again."""
    ban_seconds: float = 20.0
    """A member that others cannot reach is left out for so long."""
    lease_seconds: float = 60.0
    """The data of a member that is gone for so long are dealt to the others."""

    def __post_init__(self) -> None:
        if self.quorum < 1 or self.num_members_at_start < 1:
            raise ValueError("quorum and num_members_at_start must be at least 1")
        times = (self.deadline_seconds, self.exchange_seconds_max, self.ask_again_seconds, self.ban_seconds)
        times += (self.lease_seconds,)
        if not all(seconds > 0 for seconds in times):
            raise ValueError("Deadlines and the time until asking again must be above 0 seconds.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DesyncConfig:
    """A method, complete."""

    num_worker_steps: int
    """Budget: local steps over all workers together."""
    parameters_every: int = 32
    """K_x, in steps of the fastest worker."""
    moments_every: Mapping[str, int] = field(default_factory=dict[str, int])
    """K_u, K_v ...: by the optimizer's name of a moment; what is missing is never averaged."""
    periods: str = "fixed"
    """`auto`: as often as `wire_share_max` allows by the measured times, moments at their half-lives; `drift`: no more
    often than that, and so that replicas are about `drift_max` apart. The periods above are those to begin with."""
    drift_max: float = 0.01
    """With `periods = "drift"`: distance of a replica from the mean when they are averaged, over the mean's norm."""
    wire_share_max: float = 0.1
    """Where something is `auto`: share of the time that may be spent waiting for exchanges."""
    is_probabilistic: bool = False
    """Flip shared coins with p = 1 / K instead of counting to K."""
    averages_gradients: bool = False
    """Average every step's gradients and nothing else (synchronous data parallelism)."""
    outer: Rule = field(default_factory=Descent)
    """SERVEROPT: what is done with the mean delta of the parameters."""
    is_speed_scaled: bool = False
    """Each worker makes max(1, ceil(H speed / fastest speed)) steps per round."""
    weights: str = "members"
    """A worker's weight in means: the same for all members, by its steps or tokens since the last, or by its speed."""
    codec: str = "raw"
    """Of parameter deltas (or gradients) between sites; `auto`: for each link the most exact one that its measured
    bandwidth has time for."""
    site_codec: str = "raw"
    """Of parameter deltas (or gradients) within a site, or `auto`."""
    moment_codec: str = "raw"
    """Of moments, anywhere; their values travel, without feedback."""
    feedback_decay: float = 1.0
    """Share of what a lossy codec left out that is added to the next; 0: no error feedback."""
    topology: str = "ring"
    """`ring` over all members; `two-level`: within the sites first, then one ring between them; `star`: as two-level,
    but each part goes straight to its owner's site and back, and sites own as much as their links can carry."""
    are_moments_local: bool = False
    """Average moments among the members of each site only."""
    site_parameters_every: int | None = None
    """Between those rounds, average the parameters among the members of each site, in these steps; None: do not."""
    is_overlapped: bool = False
    """Go on with local steps while an average travels."""
    is_free_running: bool = False
    """With overlap: a round begins as soon as the last has landed, not after a number of steps; nobody ever waits."""
    round_seconds_min: float = 0.0
    """Free-running rounds begin at least so long after one another."""
    num_fragments: int = 1
    """The parameters are averaged in so many fragments, one after another, each with period `parameters_every`."""
    moment_decays: Mapping[str, float] = field(default_factory=dict[str, float])
    """beta by moment, with which an average that arrives late is aged; needed for moments if overlapped."""
    bytes_per_second: Mapping[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    """Known bandwidth from site to site, for the best ring; what is missing counts as `bytes_per_second_else`."""
    bytes_per_second_else: float = 12.5e6
    part_values_max: int = 1 << 21
    """Values of one message."""
    rounds: RoundConfig = field(default_factory=RoundConfig)

    def __post_init__(self) -> None:
        if self.num_worker_steps < 1:
            raise ValueError(f"num_worker_steps must be at least 1, not {self.num_worker_steps}")
        self._check_periods()
        self._check_adaptive()
        for name, others in (("codec", (AUTO,)), ("site_codec", (AUTO,)), ("moment_codec", ())):
            known = (*SIGNED_CODECS, *others)
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; there are {', '.join(known)}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, not {self.weights!r}")
        if self.topology not in TOPOLOGIES:
            raise ValueError(f"topology must be one of {', '.join(TOPOLOGIES)}, not {self.topology!r}")
        if not 0 <= self.feedback_decay <= 1:
            raise ValueError(f"feedback_decay must be from 0 to 1, not {self.feedback_decay}")
        if self.part_values_max < 64 or self.part_values_max % 64:
            raise ValueError(f"part_values_max must be a multiple of 64, not {self.part_values_max}")

    def _check_periods(self) -> None:
        if self.num_fragments < 1 or self.parameters_every % self.num_fragments:
            raise ValueError(
                f"parameters_every ({self.parameters_every}) must be a multiple of num_fragments ({self.num_fragments})"
            )
        if self.site_parameters_every is not None and self.site_parameters_every > self.parameters_every:
            raise ValueError("site_parameters_every must not be above parameters_every: sites are averaged in between.")
        if self.is_free_running and not self.is_overlapped:
            raise ValueError("Rounds can only run freely beside local steps: set is_overlapped too.")
        Cadence(periods={"parameters": self.parameters_every, **self.moments_every})
        for name, period in self.moments_every.items():
            if period < self.parameters_every and not self.are_moments_local:
                raise ValueError(
                    f"{name} would be averaged every {period} steps and the parameters every {self.parameters_every}: "
                    "never average a moment more often than the parameters"
                )
            if self.is_overlapped and name not in self.moment_decays:
                raise ValueError(f"With is_overlapped, say how {name} ages: moment_decays = {{{name!r}: beta}}.")
        if self.averages_gradients and (self.parameters_every != 1 or self.moments_every or self.is_overlapped):
            raise ValueError("Gradients are averaged at every step, without periods, moments or overlap.")

    def _check_adaptive(self) -> None:
        if self.periods not in PERIODS:
            raise ValueError(f"periods must be one of {', '.join(PERIODS)}, not {self.periods!r}")
        if not 0 < self.wire_share_max <= 1:
            raise ValueError(f"wire_share_max is a share above 0 and at most 1, not {self.wire_share_max}")
        if not self.drift_max > 0:
            raise ValueError(f"drift_max must be above 0, not {self.drift_max}")
        if self.periods == "fixed":
            return
        if self.averages_gradients or self.is_free_running or self.is_probabilistic:
            raise ValueError(
                f"periods = {self.periods!r} chooses how many steps lie between two rounds, which is not a number here "
                "(ddp, free-running or probabilistic rounds): leave periods out"
            )
        for name in self.moments_every:
            if name not in self.moment_decays:
                raise ValueError(f"With periods = {self.periods!r}, say how {name} ages: moment_decays.")

    def with_periods(self, parameters_every: int, moments_every: Mapping[str, int]) -> "DesyncConfig":
        """The same method with other periods."""
        site_every = self.site_parameters_every
        return dataclasses.replace(
            self,
            parameters_every=parameters_every,
            moments_every=moments_every,
            site_parameters_every=None if site_every is None else min(site_every, parameters_every),
        )

    @property
    def chooses_codecs(self) -> bool:
        """Whether any codec follows from measured bandwidths."""
        return AUTO in (self.codec, self.site_codec)

    @property
    def cadence(self) -> Cadence:
        """When what is due."""
        if self.averages_gradients:
            return Cadence(periods={GRADIENTS: 1})
        stride = self.parameters_every // self.num_fragments
        offsets = {fragment_name(number, self.num_fragments): number * stride for number in range(self.num_fragments)}
        sites = {} if self.site_parameters_every is None else {SITE_PARAMETERS: self.site_parameters_every}
        periods = {**dict.fromkeys(offsets, self.parameters_every), **sites, **self.moments_every}
        coin = self.fingerprint if self.is_probabilistic else None
        return Cadence(periods=periods, offsets=offsets, coin=coin)

    @property
    def keeps_residual(self) -> bool:
        """Whether what codecs leave out is kept."""
        return self.feedback_decay > 0 and (self.codec != "raw" or self.site_codec != "raw")

    def fragment_bounds(self, length: int) -> dict[str, tuple[int, int]]:
        """[first, last) of each fragment of parameters of `length` values."""
        count = self.num_fragments
        blocks = -(-length // ALIGNMENT_VALUES)
        marks = [min(length, blocks * number // count * ALIGNMENT_VALUES) for number in range(count + 1)]
        return {fragment_name(number, count): (marks[number], marks[number + 1]) for number in range(count)}

    @property
    def fingerprint(self) -> str:
        """Equal for members that can work together."""
        own = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        told = [f"{name}={sorted(one.items()) if isinstance(one, Mapping) else one!r}" for name, one in own.items()]
        return hashlib.sha256("; ".join(told).encode()).hexdigest()[:32]

    def bandwidth(self, one: str, other: str) -> float:
        """Bytes per second from site to site, for the choice of ring."""
        return self.bytes_per_second.get((one, other), self.bytes_per_second_else)


def ddp(num_worker_steps: int, **settings: Any) -> DesyncConfig:
    """Synchronous data parallelism: gradients are averaged at every step."""
    return DesyncConfig(num_worker_steps=num_worker_steps, averages_gradients=True, parameters_every=1, **settings)


def local_adam(
    num_worker_steps: int, every: int, *, moments: tuple[str, ...] = ADAM_MOMENTS, **settings: Any
) -> DesyncConfig:
    """Parameters and all moments are averaged together."""
    return desloc(num_worker_steps, every, dict.fromkeys(moments, every), **settings)


def desloc(
    num_worker_steps: int, every: int, moments_every: Mapping[str, int] | None = None, **settings: Any
) -> DesyncConfig:
    """Each state at its own period; by default K_u = 3 K_x and K_v = 6 K_x."""
    if moments_every is None:
        moments_every = {"first_moment": 3 * every, "second_moment": 6 * every}
    return DesyncConfig(
        num_worker_steps=num_worker_steps, parameters_every=every, moments_every=moments_every, **settings
    )


def diloco(num_worker_steps: int, every: int, *, outer: Rule | None = None, **settings: Any) -> DesyncConfig:
    """Parameters only, with an outer Nesterov step (rate .7, momentum .9); `is_speed_scaled=True` gives DynUpd."""
    outer = outer or Nesterov(learning_rate=0.7, momentum=0.9)
    return DesyncConfig(num_worker_steps=num_worker_steps, parameters_every=every, outer=outer, **settings)


def farflung(
    num_worker_steps: int,
    num_fragments: int = 4,
    *,
    moments: Mapping[str, float] | None = None,
    **settings: Any,
) -> DesyncConfig:
    """Nobody ever waits: fragments of the parameters travel in four bits beside local steps, one after another.

    With each of them the members of a site average all parameters and their moments (by name, with their decay beta)
    among themselves. Periods count rounds here.
    """
    decays = {"first_moment": 0.9, "second_moment": 0.95} if moments is None else moments
    usual: dict[str, Any] = {
        "codec": "int4",
        "topology": "star",
        "weights": "speed",
        "moments_every": dict.fromkeys(decays, 1),
        "site_parameters_every": 1,
    }
    return DesyncConfig(
        num_worker_steps=num_worker_steps,
        parameters_every=num_fragments,
        num_fragments=num_fragments,
        moment_decays=decays,
        are_moments_local=True,
        is_overlapped=True,
        is_free_running=True,
        **(usual | settings),
    )
