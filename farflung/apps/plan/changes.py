"""Single changes of a plan that may help: more bandwidth, a shorter way, one more machine (pure)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from farflung.apps.plan.outcome import Outcome
from farflung.apps.plan.plan_file import BetweenSettings, LinkSettings, PlanFile


@dataclass(frozen=True, slots=True)
class Change:
    """The plan with one input improved."""

    key: str
    plan: PlanFile
    values: Mapping[str, str | int | float] = field(default_factory=dict[str, str | int | float])


def changes_for(plan: PlanFile, now: Outcome) -> list[Change]:
    """The fullest link wider and shorter, unless machines are busy anyway; one more machine of the commonest kind."""
    found: list[Change] = []
    if now.busiest_link is not None and now.limit.key != "limit busy":
        one, other = sorted(now.busiest_link)
        link = plan.link(one, other)
        values = {"one": one, "other": other}
        wider = replace(link, bandwidth_mbit=2 * link.bandwidth_mbit)
        nearer = replace(link, round_trip_ms=link.round_trip_ms / 2)
        found.append(Change("change bandwidth", with_link(plan, one, other, wider), values))
        found.append(Change("change round trip", with_link(plan, one, other, nearer), values))
    kinds = Counter((machine.site, machine.device) for machine in now.machines)
    (site, device), _ = kinds.most_common(1)[0]
    found.append(Change("change machine", with_machines(plan, site, device, 1), {"site": site, "device": device}))
    return found


def with_link(plan: PlanFile, one: str, other: str, link: LinkSettings) -> PlanFile:
    """With that link between two sites."""
    own = {entry.name: getattr(link, entry.name) for entry in fields(LinkSettings)}
    others = tuple(given for given in plan.links if set(given.between) != {one, other})
    return replace(plan, links=(*others, BetweenSettings(between=(one, other), **own)))


def with_machines(plan: PlanFile, site: str, device: str, num_more: int) -> PlanFile:
    """With more machines of a kind that there is."""
    machines = list(plan.machines)
    index = next(at for at, one in enumerate(machines) if (one.site, one.device) == (site, device))
    machines[index] = replace(machines[index], count=machines[index].count + num_more)
    return replace(plan, machines=tuple(machines))
