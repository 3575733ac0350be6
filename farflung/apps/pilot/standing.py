"""The plan of a swarm as it stands: its servers with the blocks that they hold, and users where the pilot is (pure)."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from farflung.apps.dashboard.swarm_view import site_of
from farflung.apps.pilot.survey import Survey, Target, online
from farflung.apps.plan.fleet import machines_of
from farflung.apps.plan.goals import ServeGoal
from farflung.apps.plan.measured import Seen, by_site, most_served
from farflung.apps.plan.plan_file import BetweenSettings, PlanFile
from farflung.apps.plan.serving_run import Group, Placed, Served, ServingRun
from farflung.apps.plan.sizes import Sizes, sizes_of
from farflung.apps.plan.swarm import completed
from farflung.apps.plan.words import said
from farflung.apps.status import ranges
from farflung.world.address import PeerId

HERE = "the pilot"
"""The name of its site."""
TOKENS_TOGETHER = 16
"""That all users draw before anything is counted."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is predicted for, with what it is predicted from."""

    plan: PlanFile
    goal: ServeGoal
    sizes: Sizes
    group: Group


def target_of(seen: Seen, fingerprint: str | None) -> Target:
    """The model to ask for; None: that of most servers.

    Raises:
        ValueError: nobody serves it, or not all of it.
    """
    wanted = most_served(seen) if fingerprint is None else fingerprint
    servers = online(seen.servers, wanted)
    if not servers:
        names = ", ".join(sorted({info.model_name for info in seen.servers.values()})) or "nothing"
        raise ValueError(f"nobody in the swarm {seen.swarm!r} serves the model of the plan: it has {names}")
    num_blocks = max(max(info.num_model_blocks, info.blocks.last) for info in servers.values())
    held = {block for info in servers.values() for block in range(*info.blocks)}
    missing = [block for block in range(num_blocks) if block not in held]
    if missing:
        raise ValueError(f"no server holds blocks {ranges(missing)} of the model: start one for them, and try again")
    machine = next((seen.machines[peer] for peer in servers if peer in seen.machines), None)
    if machine is None:
        raise ValueError("the servers of this model do not tell how large it is: start them with this version")
    return Target(wanted, num_blocks, machine.hidden_size)


def standing(tables: Mapping[str, Any], seen: Seen, survey: Survey, target: Target) -> Standing:
    """The plan for the model's servers as they are, with what was measured, and users here.

    Raises:
        ValueError: the goal is no goal of serving, or a mistake in the tables.
    """
    measured = survey.applied(seen, target.fingerprint)
    bare = {name: table for name, table in tables.items() if name != "model"}
    goal_table = {name: value for name, value in tables.get("goal", {}).items() if name != "users_at"}
    whole = completed({**bare, "goal": goal_table}, measured)
    plan = _with_pilot(whole, measured, survey)
    assert isinstance(plan.goal, ServeGoal)
    goal = replace(plan.goal, users_at=(HERE,))
    plan = replace(plan, goal=goal)
    placed = tuple(
        Placed(machine, measured.servers[peer].blocks)
        for peer, machine in zip(by_site(measured), machines_of(plan), strict=True)
    )
    return Standing(plan, goal, sizes_of(plan.model), Group(placed, (HERE,)))


def predicted(of: Standing) -> Served:
    """What the simulator says."""
    num_tokens = min(TOKENS_TOGETHER, of.goal.answer_tokens)
    return ServingRun(of.plan, of.goal, of.sizes, [of.group], num_tokens).run()


def _with_pilot(plan: PlanFile, seen: Seen, survey: Survey) -> PlanFile:
    """With a site of the pilot's own, as far from the others as it has measured."""
    round_trips = _by_site(seen, survey.round_trip_seconds)
    rates = _by_site(seen, survey.bytes_per_second)
    links, remarks = list(plan.links), list(plan.remarks)
    for name in plan.site_names:
        seconds, rate = round_trips.get(name), rates.get(name)
        link = BetweenSettings(
            between=(HERE, name),
            round_trip_ms=plan.default_link.round_trip_ms if seconds is None else seconds * 1000,
            bandwidth_mbit=rate * 8 / 1e6 if rate else plan.default_link.bandwidth_mbit,
        )
        links.append(link)
        if not rate:
            value = f"{plan.default_link.bandwidth_mbit:g} Mbit/s"
            remarks.append(said("assumed bandwidth", links=f"{HERE}–{name}", value=value))
    site = replace(plan.sites[0], name=HERE)
    return replace(plan, sites=(*plan.sites, site), links=tuple(links), remarks=tuple(remarks))


def _by_site(seen: Seen, values: Mapping[PeerId, float]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for peer in seen.servers:
        if peer in values:
            found.setdefault(site_of(seen.view[peer]), []).append(values[peer])
    return {name: statistics.median(several) for name, several in found.items()}
