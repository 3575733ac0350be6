"""A stretch of serving in virtual time: the servers, sessions and messages that ship, with blocks that only cost."""

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from farflung.apps.plan.charged_span import ChargedSpan
from farflung.apps.plan.fleet import Machine, peer_of
from farflung.apps.plan.goals import ServeGoal
from farflung.apps.plan.places import Bytes, Nodes, difference, scaled, topology_of
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.sizes import Sizes
from farflung.apps.plan.units import bytes_of, time_of
from farflung.apps.plan.user import User, together
from farflung.sim.simulation import Simulation
from farflung.systems.swarm.checks import Limits
from farflung.systems.swarm.config import ServerConfig, SessionConfig
from farflung.systems.swarm.info import BlockRange, ServerInfo
from farflung.systems.swarm.messages import ACTOR, Attach
from farflung.systems.swarm.server import Server
from farflung.systems.swarm.session import Session
from farflung.systems.swarm.view import SwarmView
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.errors import FarflungError
from farflung.world.host import Host
from farflung.world.mailbox import Mailbox

MEETING_SECONDS = 1.0
"""Until everybody knows how far the others are."""
PAUSE_SECONDS = 1.0
"""Between prompts and what is measured, so that neither is in the other's bytes."""


SESSION = SessionConfig(ask_again_seconds=3600.0, step_seconds_max=1e6)
"""Nobody dies here, and a step that takes long is no reason to look elsewhere."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A server: a machine with its blocks."""

    machine: Machine
    blocks: BlockRange


@dataclass(frozen=True, slots=True)
class Group:
    """Servers that hold the model together, and the sites whose users ask them."""

    servers: tuple[Placed, ...]
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """What was measured."""

    first_token_seconds: float
    """Of the first user, alone."""
    first_prompt_bytes: Bytes
    """Of that user's prompt."""
    tokens_per_second: list[float]
    """Of each user, after the first."""
    prompt_bytes: Bytes
    """Of one prompt of each user: where their tokens go, as many bytes as the first user's prompt has."""
    token_bytes: Bytes
    """Of one token of each user."""
    busy_share: dict[str, float]
    """Of each server's time, while tokens were drawn."""
    chains: list[list[tuple[Machine, int]]]
    """The servers of each user, with the number of blocks that they compute."""


class ServingRun:
    """All users of a plan at once, each with a prompt and `num_tokens` tokens."""

    def __init__(self, plan: PlanFile, goal: ServeGoal, sizes: Sizes, groups: Sequence[Group], num_tokens: int) -> None:
        self._plan, self._goal, self._sizes, self._groups = plan, goal, sizes, groups
        self._num_tokens = num_tokens
        self._nodes = Nodes()
        self._roles: dict[str, Server] = {}
        self._servers = {peer_of(placed.machine.name): placed for group in groups for placed in group.servers}
        self._homes = [users_site(plan, goal, number) for number in range(goal.users)]

    def run(self) -> Served:
        """From the first prompt to the last token.

        Raises:
            ValueError: links are so thin or long that servers are given up, and by how much.
        """
        try:
            return self._run()
        except FarflungError:
            raise ValueError(self._too_slow()) from None

    def _run(self) -> Served:
        with Simulation(topology=topology_of(self._plan), keep_trace=False) as simulation, torch.inference_mode():
            for name, placed in self._servers.items():
                self._nodes.sites[name] = placed.machine.site
                simulation.node(name, site=placed.machine.site, boot=functools.partial(self._boot, placed))
            worlds: list[World] = []
            for number, site in enumerate(self._homes):
                self._nodes.sites[user_name(number)] = site
                worlds.append(simulation.node(user_name(number), site=site))
            return self._measure(simulation, worlds)

    def _too_slow(self) -> str:
        """Nobody dies in a plan, so that whoever does not answer in time is too far."""
        ways = {
            (home, placed.machine.site)
            for number, home in enumerate(self._homes)
            for placed in self._group_of(number).servers
            if placed.machine.site != home
        }
        num_bytes = 4 * self._goal.prompt_tokens * self._sizes.source.hidden_size

        def seconds_of(way: tuple[str, str]) -> float:
            link = self._plan.link(*way)
            return link.round_trip_ms / 1000 + 2 * num_bytes / link.bytes_per_second

        one, other = max(sorted(ways), key=seconds_of)
        patience = SESSION.ask_again_seconds * SESSION.num_asks_max
        return (
            f"the {self._goal.prompt_tokens} tokens of a prompt take {time_of(seconds_of((one, other)))} from {one} to "
            f"a server in {other} and back, {bytes_of(num_bytes)} each way, and a server that does not answer for "
            f"{time_of(patience)} is given up: widen that link, or serve in each site alone"
        )

    def _measure(self, simulation: Simulation, worlds: Sequence[World]) -> Served:
        simulation.run(self._meet(worlds), deadline=float("inf"))
        users = [self._user(number, world) for number, world in enumerate(worlds)]
        before = self._nodes.bytes_sent(simulation)
        first = simulation.run(users[0].prompt(self._goal.prompt_tokens), deadline=float("inf"))
        simulation.advance(PAUSE_SECONDS)
        first_bytes = difference(self._nodes.bytes_sent(simulation), before)
        # What a cache holds costs nothing here: the others begin with a word.
        prompts = [functools.partial(user.prompt, 1) for user in users[1:]]
        simulation.run(together(prompts), deadline=float("inf"))
        simulation.advance(PAUSE_SECONDS)
        after_prompts = self._nodes.bytes_sent(simulation)
        busy_before, began_at = self._busy(simulation), simulation.now()
        answers = [functools.partial(user.answer, self._num_tokens) for user in users]
        rates = simulation.run(together(answers), deadline=float("inf"))
        seconds = simulation.now() - began_at
        busy = {name: (total - busy_before[name]) / seconds for name, total in self._busy(simulation).items()}
        chains = [self._chain(user.session) for user in users]
        simulation.advance(PAUSE_SECONDS)
        sent = difference(self._nodes.bytes_sent(simulation), after_prompts)
        token_bytes = scaled(sent, 1 / self._num_tokens)
        prompts_share = len(users) * sum(first_bytes.values()) / sum(token_bytes.values())
        return Served(
            first_token_seconds=first,
            first_prompt_bytes=first_bytes,
            tokens_per_second=rates,
            prompt_bytes=scaled(token_bytes, prompts_share),
            token_bytes=token_bytes,
            busy_share=busy,
            chains=chains,
        )

    def _chain(self, session: Session) -> list[tuple[Machine, int]]:
        hops = [link.hop for link in session.chain.links]
        return [(self._servers[hop.peer].machine, hop.last - hop.first) for hop in hops]

    def _busy(self, simulation: Simulation) -> dict[str, float]:
        devices: dict[str, Any] = {name: simulation.world(name).compute for name in self._servers}
        return {name: device.busy_seconds for name, device in devices.items()}

    def _boot(self, placed: Placed, world: World) -> None:
        sizes, machine, goal = self._sizes, placed.machine, self._goal
        config = ServerConfig(
            model=sizes.source.fingerprint,
            model_name=sizes.name,
            limits=Limits(hidden_size=sizes.source.hidden_size, context_length_max=sizes.source.context_length_max),
            cache_tokens_max=cache_tokens(goal),
            blocks_per_second=machine.blocks_per_second(sizes.block_parameters),
            forward_tokens_per_second=machine.forward_tokens_per_second(sizes.block_parameters),
            version="planned",
            started_at=0.0,
        )
        role = self._roles[peer_of(machine.name)] = Server(config, ChargedSpan(sizes.source, *placed.blocks))
        Host(role, world, ACTOR)

    async def _meet(self, worlds: Sequence[World]) -> None:
        """Let every user reach every server of its group once, as a node that measures distances does."""
        for number, world in enumerate(worlds):
            with Mailbox(world, "meeting") as mailbox:
                for placed in self._group_of(number).servers:
                    mailbox.send(Address(PeerId(peer_of(placed.machine.name)), ACTOR), Attach(session="meeting"))
        longest = max((link.round_trip_ms for link in (*self._plan.links, self._plan.default_link)), default=0.0)
        await asyncio.sleep(MEETING_SECONDS + 4 * longest / 1000)

    def _group_of(self, number: int) -> Group:
        return next(group for group in self._groups if self._homes[number] in group.sites)

    def _user(self, number: int, world: World) -> User:
        sizes, goal = self._sizes, self._goal
        group = self._group_of(number)
        view = SwarmView(
            world, sizes.source.fingerprint, sizes.num_blocks, sizes.source.hidden_size, self._announced(group)
        )
        session = Session(world, view, SESSION, num_tokens_max=goal.prompt_tokens + goal.answer_tokens)
        return User(world.clock, session, lambda num: torch.zeros(1, num, sizes.source.hidden_size), goal.client_ms)

    def _announced(self, group: Group) -> Callable[[], dict[PeerId, ServerInfo]]:
        names = [peer_of(placed.machine.name) for placed in group.servers]
        ways = {name: self._round_trips(name, names) for name in names}
        return lambda: {PeerId(name): self._roles[name].info(ways[name]) for name in names}

    def _round_trips(self, name: str, others: Sequence[str]) -> dict[PeerId, float]:
        return {PeerId(other): self._round_trip(name, other) for other in others if other != name}

    def _round_trip(self, name: str, other: str) -> float:
        one, two = self._nodes.sites[name], self._nodes.sites[other]
        if one != two:
            return self._plan.link(one, two).round_trip_ms / 1000
        return next(site.round_trip_ms for site in self._plan.sites if site.name == one) / 1000


def user_name(number: int) -> str:
    """Of its node."""
    return peer_of(f"user/{number}")


def users_site(plan: PlanFile, goal: ServeGoal, number: int) -> str:
    """Where a user is."""
    sites = goal.users_at or plan.site_names
    return sites[number % len(sites)]


def cache_tokens(goal: ServeGoal) -> int:
    """That a server has room for: all users' prompts and answers."""
    return goal.users * (goal.prompt_tokens + goal.answer_tokens)
