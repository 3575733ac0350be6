"""The minute before a pilot: real sessions measure servers and ways, and the directory is looked at after that."""

import asyncio
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import msgspec
import torch

from farflung.apps.announced import AnnouncedServers
from farflung.apps.plan.measured import Seen
from farflung.apps.plan.swarm import look_now
from farflung.apps.plan.user import User
from farflung.apps.wiring import Connection
from farflung.systems.swarm.config import SessionConfig
from farflung.systems.swarm.info import ServerInfo, ServerState
from farflung.systems.swarm.session import Session
from farflung.systems.swarm.view import SwarmView
from farflung.world.address import PeerId

BULK_BYTES = 1 << 20
"""Smaller messages do not tell how wide a way is."""
POSITIONS_MIN, POSITIONS_MAX = 64, 1024
DECODED_TOKENS = 8
LATE_SECONDS = 0.5
"""Until servers have told what they computed, behind an answer."""


@dataclass(frozen=True, slots=True)
class Target:
    """The model that a pilot asks, as its servers announce it."""

    fingerprint: str
    num_blocks: int
    hidden_size: int


@dataclass(slots=True)
class Survey:
    """What was measured, in its own units."""

    blocks_per_second: dict[PeerId, list[float]] = field(default_factory=dict[PeerId, list[float]])
    forward_tokens_per_second: dict[PeerId, list[float]] = field(default_factory=dict[PeerId, list[float]])
    round_trip_seconds: dict[PeerId, float] = field(default_factory=dict[PeerId, float])
    """From here."""
    bytes_per_second: dict[PeerId, float] = field(default_factory=dict[PeerId, float])
    """From here."""

    def applied(self, seen: Seen, fingerprint: str) -> Seen:
        """The servers of one model that take sessions, with the speeds that sessions have found."""
        servers = {peer: self._with_speeds(peer, info) for peer, info in online(seen.servers, fingerprint).items()}
        return replace(seen, servers=servers)

    def _with_speeds(self, peer: PeerId, info: ServerInfo) -> ServerInfo:
        decoding, forward = self.blocks_per_second.get(peer), self.forward_tokens_per_second.get(peer)
        if decoding:
            info = msgspec.structs.replace(info, blocks_per_second=statistics.median(decoding))
        if forward:
            info = msgspec.structs.replace(info, forward_tokens_per_second=statistics.median(forward))
        return info


def online(servers: Mapping[PeerId, ServerInfo], fingerprint: str) -> dict[PeerId, ServerInfo]:
    """Those of a model that take sessions."""
    return {
        peer: info for peer, info in servers.items() if info.model == fingerprint and info.state is ServerState.ONLINE
    }


def view_of(connection: Connection, target: Target) -> SwarmView:
    """The servers of the model as a client sees them; called on the connection's loop."""
    announced = AnnouncedServers(connection.node.member)
    return SwarmView(connection.node.world, target.fingerprint, target.num_blocks, target.hidden_size, announced)


def hidden_states(hidden_size: int) -> Callable[[int], torch.Tensor]:
    """Never the same twice, so that no server has them in a cache."""
    generator = torch.Generator().manual_seed(0)
    return lambda num_positions: torch.randn(1, num_positions, hidden_size, generator=generator)


async def survey(
    connection: Connection, target: Target, found: Survey, seconds: float, advance: Callable[[float], object]
) -> Seen:
    """Measure for so long into `found`; what the directory says after it. `advance` hears of seconds gone by.

    Raises:
        FarflungError: the model cannot be reached.
    """
    view, clock = view_of(connection, target), connection.node.world.clock
    positions = max(POSITIONS_MIN, min(POSITIONS_MAX, BULK_BYTES // (4 * target.hidden_size) + 1))
    ends_at, told_at = clock.now() + seconds, clock.now()
    while True:
        room = min((info.cache_tokens_left for info in view.servers().values()), default=0)
        await _one_session(connection, view, target, found, min(positions, max(1, room // 2)))
        advance(clock.now() - told_at)
        told_at = clock.now()
        if told_at >= ends_at:
            break
    _look_at_ways(connection, found)
    return look_now(connection)


async def _one_session(
    connection: Connection, view: SwarmView, target: Target, found: Survey, num_positions: int
) -> None:
    config = SessionConfig(piece_positions=num_positions)
    session = Session(connection.node.world, view, config, num_tokens_max=num_positions + DECODED_TOKENS)
    user = User(connection.node.world.clock, session, hidden_states(target.hidden_size), 0.0)
    try:
        await user.prompt(num_positions)
        await asyncio.sleep(LATE_SECONDS)
        _take(session, view, found.forward_tokens_per_second, num_positions)
        await user.answer(DECODED_TOKENS)
        await asyncio.sleep(LATE_SECONDS)
        _take(session, view, found.blocks_per_second, 1)
    finally:
        session.close()


def _take(session: Session, view: SwarmView, into: dict[PeerId, list[float]], num_positions: int) -> None:
    report = session.recent.report(view.servers())
    for hop in report.hops if report is not None else ():
        if hop.compute_seconds > 0:
            into.setdefault(hop.peer, []).append(num_positions * hop.blocks.num_blocks / hop.compute_seconds)


def _look_at_ways(connection: Connection, found: Survey) -> None:
    node = connection.node
    now = node.world.clock.now()
    for peer in sorted(node.member.view):
        seconds = node.surveyor.table.distance(peer, now).round_trip_seconds
        seconds = node.world.network.round_trip_seconds(peer) if seconds is None else seconds
        rate = node.world.network.bytes_per_second(peer)
        if seconds is not None:
            found.round_trip_seconds[peer] = seconds
        if rate is not None:
            found.bytes_per_second[peer] = rate
