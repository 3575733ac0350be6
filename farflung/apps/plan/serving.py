"""Ways of serving a model: which machines hold which blocks, tried in the simulator."""

import functools
import itertools
from collections.abc import Sequence

from farflung.apps.capacity import USABLE_SHARE
from farflung.apps.plan.fleet import BYTES, Machine, machines_of
from farflung.apps.plan.goals import ServeGoal
from farflung.apps.plan.outcome import Candidate, Outcome, confidence_of, cost_of, energy_of, link_use
from farflung.apps.plan.places import added, scaled
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.serving_run import Group, Placed, Served, ServingRun, cache_tokens, users_site
from farflung.apps.plan.sizes import Sizes
from farflung.apps.plan.units import bytes_of
from farflung.apps.plan.words import Sentence, said
from farflung.systems.swarm.placement import Holder, PlacementConfig, choose_blocks, plan_moves
from farflung.world.address import PeerId

STEPS_SIMULATED = 4000
"""Of all users through all servers, about."""
TOKENS_MIN, TOKENS_MAX = 4, 16
"""That each user draws."""


def candidates(plan: PlanFile, goal: ServeGoal, sizes: Sizes) -> list[Candidate]:
    """All over; the fewest machines; in each site; in few sites that are near to each other."""
    sizes.check_length(goal.prompt_tokens + goal.answer_tokens, "goal.prompt_tokens + goal.answer_tokens")
    tried = [said("all sites")]
    if len(plan.sites) > 1:
        tried.append(said("each site"))
        near = dict.fromkeys(near_sites(plan, goal, sizes, site) for site in plan.site_names)
        tried += [said("some sites", sites=", ".join(sites)) for sites in near if len(sites) < len(plan.sites)]
    known: list[list[Group]] = []
    found: list[Candidate] = []
    for method in (*tried, said("fewest")):
        try:
            groups = groups_of(plan, goal, sizes, method)
        except ValueError:  # told when it is tried
            groups = []
        if groups not in known or not groups:
            known.append(groups)
            found.append(Candidate(method, functools.partial(_try, goal, sizes, method)))
    return found


def near_sites(plan: PlanFile, goal: ServeGoal, sizes: Sizes, center: str) -> tuple[str, ...]:
    """`center` and as many of the sites nearest to it as hold the model together, in the order of the plan."""
    by_distance = sorted(
        (name for name in plan.site_names if name != center), key=lambda name: plan.link(center, name).round_trip_ms
    )
    machines = machines_of(plan)
    chosen = {center}
    for name in by_distance:
        if num_blocks_that_fit([one for one in machines if one.site in chosen], goal, sizes) >= sizes.num_blocks:
            break
        chosen.add(name)
    return tuple(name for name in plan.site_names if name in chosen)


def _try(goal: ServeGoal, sizes: Sizes, method: Sentence, plan: PlanFile) -> Outcome:
    groups = groups_of(plan, goal, sizes, method)
    num_servers = sum(len(group.servers) for group in groups)
    num_tokens = max(TOKENS_MIN, min(TOKENS_MAX, STEPS_SIMULATED // (goal.users * min(num_servers, 8))))
    num_tokens = min(num_tokens, goal.answer_tokens)  # there is no room in the caches for more
    served = ServingRun(plan, goal, sizes, groups, num_tokens).run()
    return _outcome(plan, goal, sizes, method, groups, served)


def groups_of(plan: PlanFile, goal: ServeGoal, sizes: Sizes, method: Sentence) -> list[Group]:
    """Who holds what, as servers choose it themselves when they join one after another.

    Raises:
        ValueError: machines have too little memory for it, and how much.
    """
    machines = machines_of(plan)
    everywhere = tuple(plan.site_names)
    if method.key == "each site":
        sites = dict.fromkeys(users_site(plan, goal, number) for number in range(goal.users))
        return [Group(placed([one for one in machines if one.site == own], goal, sizes), (own,)) for own in sites]
    if method.key == "some sites":
        chosen = str(method.values["sites"]).split(", ")
        machines = [one for one in machines if one.site in chosen]
    if method.key == "fewest":
        machines = _fewest(machines, goal, sizes)
    return [Group(placed(machines, goal, sizes), everywhere)]


def _fewest(machines: Sequence[Machine], goal: ServeGoal, sizes: Sizes) -> list[Machine]:
    """The fastest ones, until all blocks have a place."""
    by_speed = sorted(machines, key=lambda one: -one.blocks_per_second(sizes.block_parameters))
    chosen: list[Machine] = []
    for machine in by_speed:
        if num_blocks_that_fit(chosen, goal, sizes) >= sizes.num_blocks:
            break
        chosen.append(machine)
    return chosen


def blocks_that_fit(machine: Machine, goal: ServeGoal, sizes: Sizes) -> int:
    """With the cache of all users, in the part of the memory that a server takes."""
    values = sizes.block_parameters + cache_tokens(goal) * sizes.cache_values_per_token
    return min(sizes.num_blocks, int(machine.memory_bytes * USABLE_SHARE / (values * BYTES[machine.dtype])))


def num_blocks_that_fit(machines: Sequence[Machine], goal: ServeGoal, sizes: Sizes) -> int:
    """On all of them."""
    return sum(blocks_that_fit(machine, goal, sizes) for machine in machines)


def placed(machines: Sequence[Machine], goal: ServeGoal, sizes: Sizes) -> tuple[Placed, ...]:
    """Each machine with its blocks: as they come, and balanced after that.

    Raises:
        ValueError: too little memory, and how much.
    """
    _check_memory(machines, goal, sizes)
    swarm: list[Holder] = []
    for machine in machines:
        num_fitting = blocks_that_fit(machine, goal, sizes)
        if num_fitting:
            throughput = machine.blocks_per_second(sizes.block_parameters)
            blocks, _ = choose_blocks(swarm, sizes.num_blocks, num_fitting, throughput)
            swarm.append(Holder(peer=PeerId(machine.name), blocks=blocks, throughput=throughput))
    targets = {move.peer: move.target for move in plan_moves(swarm, sizes.num_blocks, PlacementConfig()).moves}
    settled = {one.peer: targets.get(one.peer, one.blocks) for one in swarm}
    return tuple(Placed(one, settled[PeerId(one.name)]) for one in machines if PeerId(one.name) in settled)


def _check_memory(machines: Sequence[Machine], goal: ServeGoal, sizes: Sizes) -> None:
    if num_blocks_that_fit(machines, goal, sizes) >= sizes.num_blocks:
        return
    if not machines:
        raise ValueError("there is no machine")
    value_bytes = min(machine.value_bytes for machine in machines)
    weights = sizes.num_blocks * sizes.block_parameters * value_bytes
    cache = sizes.num_blocks * cache_tokens(goal) * sizes.cache_values_per_token * value_bytes
    usable = sum(machine.memory_bytes for machine in machines) * USABLE_SHARE
    needed = f"block weights need {bytes_of(weights)} and the caches of {goal.users} users {bytes_of(cache)}"
    have = f"the machines have {bytes_of(usable)} ({USABLE_SHARE:.0%} of {bytes_of(usable / USABLE_SHARE)})"
    short = weights + cache - usable
    if short <= 0:
        raise ValueError(f"{needed}, and {have}, but in pieces smaller than whole blocks: use fewer, larger machines")
    raise ValueError(f"{needed}, {have}: {bytes_of(short)} short")


def _outcome(
    plan: PlanFile, goal: ServeGoal, sizes: Sizes, method: Sentence, groups: Sequence[Group], served: Served
) -> Outcome:
    machines = tuple(placed.machine for group in groups for placed in group.servers)
    slowest = min(served.tokens_per_second)
    seconds = served.first_token_seconds + (goal.answer_tokens - 1) / slowest
    answer_bytes = added(served.prompt_bytes, scaled(served.token_bytes, goal.answer_tokens - 1))
    per_hour = scaled(answer_bytes, 3600 / seconds)
    used = link_use(plan, served.token_bytes, 1 / slowest)
    return Outcome(
        method=method,
        machines=machines,
        seconds=seconds,
        tokens_per_second=slowest,
        meets=slowest >= goal.tokens_per_second,
        sent=per_hour,
        cost=cost_of(plan, machines, 1.0, per_hour),
        energy_kwh=energy_of(machines, 1.0),
        limit=_limit(plan, goal, sizes, groups, served),
        confidence=confidence_of(machines, "serve"),
        start=commands(goal, sizes, groups),
        busiest_link=max(used, key=lambda way: used[way], default=None),
    )


def _limit(plan: PlanFile, goal: ServeGoal, sizes: Sizes, groups: Sequence[Group], served: Served) -> Sentence:
    """What most of the slowest user's time goes to."""
    slowest = served.tokens_per_second.index(min(served.tokens_per_second))
    token_seconds = 1 / served.tokens_per_second[slowest]
    chain = served.chains[slowest]
    computing = sum(blocks / one.blocks_per_second(sizes.block_parameters) for one, blocks in chain)
    computing += goal.client_ms / 1000
    home = users_site(plan, goal, slowest)
    sites = [home, *(machine.site for machine, _ in chain), home]
    ways = [(one, other) for one, other in itertools.pairwise(sites) if one != other]
    hidden_bytes = 4 * sizes.source.hidden_size
    away = sum(plan.link(*way).one_way_seconds + hidden_bytes / plan.link(*way).bytes_per_second for way in ways)
    parts = {"limit compute": computing, "limit way": away, "limit queue": token_seconds - computing - away}
    key = max(parts, key=lambda name: parts[name])
    return said(key, share=min(1.0, parts[key] / token_seconds), count=len(ways))


def commands(goal: ServeGoal, sizes: Sizes, groups: Sequence[Group]) -> tuple[str, ...]:
    """One for each machine."""
    return tuple(
        f"farflung serve {sizes.name} {'--join TICKET' if number else '--new-swarm'} --blocks {one.blocks} "
        f"--cache-tokens {cache_tokens(goal)} --dtype {one.machine.dtype} --host 0.0.0.0 --site {one.machine.site}"
        f"  # {one.machine.name}: {one.machine.device}"
        for group in groups
        for number, one in enumerate(group.servers)
    )
