"""Who takes part in the next round, and what it is (pure): decisions with their reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from farflung.learn.shards import ShardLedger
from farflung.systems.desync.cadence import scaled_steps
from farflung.systems.desync.config import DesyncConfig, RoundConfig
from farflung.systems.desync.messages import Assignment, LinkCodec, SyncJoin
from farflung.world.address import Address, PeerId


@dataclass(slots=True)
class Member:
    """What the coordinator knows of a worker."""

    address: Address
    site: str
    steps_per_second: float
    """0: unknown."""
    begins_with: SyncJoin
    """What it said when it joined."""
    joined_at: float
    heard_at: float
    has_state: bool
    """Whether it has the outcome of every round so far."""
    arrived_at: float | None = None
    """When it had done its steps of this round."""
    num_steps: int = 0
    """In this round."""
    num_steps_unsent: int = 0
    """Since parameters were last averaged with its."""
    num_tokens_unsent: int = 0
    loss: float = 0.0
    drift: float = 0.0
    """Of its parameters from the last mean, over the mean's norm; 0: unknown."""
    bytes_per_second: Mapping[PeerId, float] = field(default_factory=dict[PeerId, float])
    """That it has measured towards others."""
    deal: int = 0
    cursor: Mapping[str, int] = field(default_factory=dict[str, int])
    """How far it was with its data when it arrived."""
    is_waiting: bool = False
    """No shard of the data is free for it yet."""
    is_awaited: bool = True
    """A member that missed a deadline is not waited for until it is heard of again."""
    banned_until: float = 0.0
    is_done: bool = False
    """It waits for leave to go."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to form a round."""

    members: tuple[Address, ...]
    """None of them: not yet."""
    reason: str
    wake_at: float | None = None
    """When to decide again if nothing happens."""


def form_round(present: Sequence[Member], now: float, config: RoundConfig) -> Decision:
    """All that are awaited have arrived, or the deadline after the first arrival has passed and a quorum is there."""
    arrived = [member for member in present if member.arrived_at is not None and member.banned_until <= now]
    banned = [member for member in present if member.banned_until > now]
    awaited = [member for member in present if member.is_awaited and member.arrived_at is None]
    if not arrived:
        return Decision((), "nobody has arrived", min((one.banned_until for one in banned), default=None))
    members = tuple(member.address for member in arrived)
    deadline = min(member.arrived_at for member in arrived if member.arrived_at is not None) + config.deadline_seconds
    if len(arrived) < config.quorum:
        wake = min((member.banned_until for member in banned), default=None)
        return Decision((), f"{len(arrived)} have arrived, the quorum is {config.quorum}", wake)
    if not awaited:
        return Decision(members, f"all {len(arrived)} have arrived")
    missing = ", ".join(str(member.address) for member in awaited)
    if now >= deadline:
        return Decision(members, f"{len(arrived)} have arrived by the deadline, without {missing}")
    return Decision((), f"waiting for {missing}", deadline)


class Plan(msgspec.Struct, frozen=True):
    """What a round consists of."""

    first: int
    """Step of the fastest worker at which it begins."""
    num_steps: int
    """Steps of the fastest worker until its exchange."""
    due: tuple[str, ...]
    """What is averaged then; nothing: the run is over."""


class Decided(msgspec.Struct, frozen=True):
    """What outlives the coordinator's process."""

    round: int = 0
    num_credited: int = 0
    """Local steps in committed rounds, over all workers."""
    num_credited_last: int = 0
    """In the last of them ..."""
    num_members_last: int = 0
    """... and by how many members."""
    exchange: int = 0
    """The last one that was committed."""
    num_exchanges: int = 0
    """No exchange of an earlier life has a number above this."""
    plan: Plan | None = None
    """Of the round that comes; None before the first."""
    fingerprint: bytes = b""
    """Of the parameters at round 0."""
    parameters_every: int = 0
    """K_x as chosen by measurements; 0: as set."""
    moments_every: dict[str, int] = {}
    """The same of the moments."""
    ledgers: dict[int, ShardLedger] = {}
    """Who holds which shards, by the order of the data that they are of."""


def plan_round(
    first: int, num_credited: int, speeds: Sequence[float], config: DesyncConfig, num_credited_last: int = 0
) -> Plan:
    """The round that begins at step `first`, for workers of these speeds (0: unknown), with what the budget leaves.

    The last round averages everything that is ever averaged, so that all end alike. Rounds that run freely are expected
    to credit what the one before did.
    """
    cadence = config.cadence
    num_steps = cadence.next_due(first) - first
    num_left = config.num_worker_steps - num_credited
    if num_left <= 0:
        return Plan(first, 0, cadence.everything)
    if config.is_free_running:
        is_last = num_left <= num_credited_last
        return Plan(first, num_steps, cadence.everything if is_last else cadence.due(first + num_steps))
    if steps_of_all(num_steps, speeds, config) < num_left:
        return Plan(first, num_steps, cadence.due(first + num_steps))
    low, high = 1, num_steps
    while low < high:
        middle = (low + high) // 2
        if steps_of_all(middle, speeds, config) < num_left:
            low = middle + 1
        else:
            high = middle
    return Plan(first, low, cadence.everything)


def own_steps(num_steps: int, speed: float, speeds: Sequence[float], config: DesyncConfig) -> int:
    """Steps of one worker in a round of `num_steps` of the fastest."""
    speed_max = max(speeds, default=0.0)
    if not config.is_speed_scaled or not speed_max or num_steps == 0:
        return num_steps
    return scaled_steps(num_steps, speed or speed_max, speed_max)


def steps_of_all(num_steps: int, speeds: Sequence[float], config: DesyncConfig) -> int:
    """Steps of all workers in a round."""
    return sum(own_steps(num_steps, speed, speeds, config) for speed in speeds)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run is."""

    round: int
    num_credited: int
    num_credited_last: int
    """In the last round ..."""
    num_members_last: int
    """... by so many members; after a restart not all of them may have come back."""
    speeds: tuple[float, ...]
    """Of all members that are there; 0: unknown."""

    def share(self, speed: float) -> float:
        """Of all steps, those of a member of that speed; members not known are thought to be as fast as the others."""
        known = [one for one in self.speeds if one]
        mean = sum(known) / len(known) if known else 1.0
        num_members = max(len(self.speeds), self.num_members_last, 1)
        return min(1.0, (speed or mean) / (sum(known) + mean * (num_members - len(known))))


def assign(plan: Plan, standing: Standing, speed: float, config: DesyncConfig) -> Assignment:
    """What a member of that speed (0: unknown) does next."""
    num_steps = own_steps(plan.num_steps, speed, standing.speeds, config)
    num_expected = steps_of_all(plan.num_steps, standing.speeds, config)
    if config.is_free_running and standing.num_credited_last:
        num_expected = standing.num_credited_last
        num_steps = max(1, round(num_expected * standing.share(speed)))
    last = (standing.num_credited + num_expected) / config.num_worker_steps
    return Assignment(
        round=standing.round,
        num_credited=standing.num_credited,
        first=plan.first,
        num_steps=num_steps,
        due=plan.due,
        progress_first=min(1.0, standing.num_credited / config.num_worker_steps),
        # Workers that run freely are told their true pace, so that they know when the budget is spent.
        progress_last=last if config.is_free_running else min(1.0, last),
    )


@dataclass(slots=True)
class Forming:
    """An exchange under way."""

    exchange: int
    seats: Mapping[Address, float]
    """Weights, in ring order."""
    began_at: float
    deadline: float
    codecs: tuple[LinkCodec, ...] = ()
    is_ready: dict[Address, bool] = field(default_factory=dict[Address, bool])


def weight_of(member: Member, config: DesyncConfig) -> float:
    """Of a member's values in the mean."""
    match config.weights:
        case "steps":
            return float(max(1, member.num_steps_unsent + member.num_steps))
        case "tokens":
            return float(max(1, member.num_tokens_unsent))
        case "speed":
            return member.steps_per_second or 1.0
        case _:
            return 1.0
