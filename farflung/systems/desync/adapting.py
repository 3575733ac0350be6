"""What a run adapts to what its members measure: codecs to links, periods to times and drift; each with its reason.

The coordinator decides and tells: codecs with each exchange, periods with the rounds that follow. A bandwidth is that
of transfers that were made, as the sender's network has timed them; until then what the settings say of the link.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

from farflung.learn.feedback import choose_codec
from farflung.systems.desync.cadence import GRADIENTS, SITE_PARAMETERS, Choice, choose_by_drift, choose_periods
from farflung.systems.desync.config import AUTO, DesyncConfig
from farflung.systems.desync.forming import Member
from farflung.systems.desync.messages import LinkCodec, Seat
from farflung.systems.desync.plan import plan_parts, sections_of
from farflung.systems.desync.routes import Part
from farflung.world.address import Address

FREE_RUNNING_STEPS = 8
"""An exchange of rounds that run freely may last as long as so many steps."""
SMOOTHING = 0.3
"""Weight of the newest exchange in the time that one takes."""
CHANGE_MIN = 0.25
"""A period, or a share of steps, that would change by less stays or is not told again."""
VALUE_BYTES = 4


def link_values(parts: Sequence[Part]) -> dict[tuple[int, int], int]:
    """Values that cross from seat to seat in an exchange: sums on their way up and means on their way down."""
    values: dict[tuple[int, int], int] = {}
    for part in parts:
        ways = [*part.tree.up.items(), *((source, target) for target, source in part.tree.down.items())]
        for way in ways:
            values[way] = values.get(way, 0) + part.last - part.first
    return dict(sorted(values.items()))


def seconds_for_exchange(config: DesyncConfig, steps_per_second: float) -> float:
    """What an exchange may take on the wire; infinite while no speed is known."""
    step_seconds = math.inf if not steps_per_second else 1 / steps_per_second
    if config.is_free_running:
        return max(config.round_seconds_min, FREE_RUNNING_STEPS * step_seconds)
    share = 1.0 if config.is_overlapped else config.wire_share_max
    return share * config.parameters_every / config.num_fragments * step_seconds


class Adaptation:
    """Measurements of one life of the coordinator, and what was chosen by them."""

    def __init__(self, config: DesyncConfig) -> None:
        self._config = config
        self._exchange_seconds: float | None = None
        self._codecs: dict[tuple[Address, Address], str] = {}
        """Last told, by the two ends."""
        self._shares: dict[Address, float] = {}
        """Last told: steps of a worker as a share of the fastest one's."""

    def choose_codecs(
        self, seats: Sequence[Seat], due: Sequence[str], members: Sequence[Member], num_values: int
    ) -> tuple[tuple[LinkCodec, ...], list[str]]:
        """Codecs of the links of an exchange that are left to be chosen, and sentences on those that are new.

        `members` are those of the seats, in the same order; `num_values`: the length of the parameters.
        """
        config = self._config
        lengths = {name: last - first for name, (first, last) in config.fragment_bounds(num_values).items()}
        lengths |= {SITE_PARAMETERS: num_values, GRADIENTS: num_values}
        sections = sections_of(lengths, [name for name in due if name in lengths], config)
        seconds = seconds_for_exchange(config, max(member.steps_per_second for member in members))
        chosen: list[LinkCodec] = []
        sentences: list[str] = []
        for (one, other), length in link_values(plan_parts(seats, sections, config)).items():
            source, target = seats[one], seats[other]
            if (config.site_codec if source.site == target.site else config.codec) != AUTO:
                continue
            measured = members[one].bytes_per_second.get(target.address.peer)
            known = config.bandwidth(source.site, target.site) if measured is None else measured
            codec, why = choose_codec(known, VALUE_BYTES * length, seconds)
            chosen.append(LinkCodec(one, other, codec))
            key = source.address, target.address
            if self._codecs.get(key) != codec:
                self._codecs[key] = codec
                how = "measured" if measured is not None else "not measured yet; as the settings say"
                sentences.append(f"{codec} from {key[0]} to {key[1]}: {why} ({known / 1e6:.3g} MB/s {how})")
        return tuple(chosen), sentences

    def told_steps(self, members: Sequence[Member], num_steps: Mapping[Address, int], num_steps_max: int) -> list[str]:
        """Sentences on workers that are to make clearly more or fewer steps than before, where speeds decide that."""
        if not self._config.is_speed_scaled or not num_steps_max:
            return []
        fastest = max(member.steps_per_second for member in members)
        sentences: list[str] = []
        for member in members:
            share, before = num_steps[member.address] / num_steps_max, self._shares.get(member.address, 1.0)
            if abs(share - before) > CHANGE_MIN * before:
                self._shares[member.address] = share
                speed = f"it makes {member.steps_per_second:.3g} steps/s, the fastest {fastest:.3g}"
                sentences.append(f"{num_steps[member.address]} of {num_steps_max} steps for {member.address}: {speed}")
        return sentences

    def exchanged(self, due: Sequence[str], seconds: float) -> None:
        """An exchange counts; from its forming to everybody's having all means it took so long."""
        # Moments are as long as the parameters, of which an exchange carries all or one fragment.
        fragments = self._config.fragment_bounds(0)
        num_states = sum(1 / len(fragments) if name in fragments else 1.0 for name in due)
        if not any(name in fragments for name in due):
            return
        one = seconds / num_states
        before = self._exchange_seconds
        self._exchange_seconds = one if before is None else before + SMOOTHING * (one - before)

    def choose_periods(self, config: DesyncConfig, members: Sequence[Member]) -> Choice | None:
        """Other periods than those of `config`, the present ones; None: they stay."""
        speeds = [member.steps_per_second for member in members if member.steps_per_second]
        if config.periods == "fixed" or self._exchange_seconds is None or not speeds:
            return None
        decays: Mapping[str, float] = {name: config.moment_decays[name] for name in config.moments_every}
        choice = choose_periods(
            1 / max(speeds),
            self._exchange_seconds,
            decays,
            exchange_share_max=1.0 if config.is_overlapped else config.wire_share_max,
            multiple_of=config.num_fragments,
        )
        if config.periods == "drift":
            drifts = [member.drift for member in members if member.drift]
            if not drifts:
                return None
            choice = choose_by_drift(
                config.parameters_every,
                math.sqrt(statistics.fmean(drift**2 for drift in drifts)),
                decays,
                drift_max=config.drift_max,
                parameters_every_min=choice.parameters_every,
                multiple_of=config.num_fragments,
            )
        change = abs(choice.parameters_every - config.parameters_every) / config.parameters_every
        return choice if change > CHANGE_MIN else None
