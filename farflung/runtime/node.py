"""A node on a real machine: its home, its key, its place in one swarm, and all doors open."""

import ipaddress
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from farflung.runtime.clock import LoopClock
from farflung.runtime.compute import ThreadCompute
from farflung.runtime.home import Home
from farflung.runtime.limits import NetworkLimits
from farflung.runtime.log import Notes
from farflung.runtime.memory import keep_freed_memory
from farflung.runtime.network import GrpcNetwork
from farflung.wire.certificate import TicketRole
from farflung.wire.chain import IsRevoked
from farflung.wire.identity import Identity
from farflung.wire.ticket import Meeting, Ticket
from farflung.world.address import PeerId
from farflung.world.doors import Contact, TrafficMeter, World

if TYPE_CHECKING:
    from farflung.runtime.tracing import Tracing

FOUNDER_TICKET_SECONDS = 10 * 365 * 86400.0
"""How long the ticket is valid that a founder makes for itself at every start."""


@dataclass(frozen=True, slots=True)
class RealNode:
    """One member of one swarm. Close it on the loop that opened it."""

    home: Home
    identity: Identity
    ticket: Ticket
    """For a founder: an admin's, that meets here."""
    world: World
    network: GrpcNetwork
    compute: ThreadCompute
    contact: Contact
    """How this node can be reached, for its record."""
    notes: Notes
    """What it has decided lately."""

    @property
    def role(self) -> TicketRole:
        """What its ticket permits."""
        return self.ticket.role

    @property
    def endpoints(self) -> tuple[str, ...]:
        """host:port pairs at which it can be called; none for a node that only dials."""
        return self.contact.endpoints

    async def close(self) -> None:
        """Leave the swarm: say goodbye, stop computing, close the home."""
        await self.network.close()
        await self.compute.close()
        self.home.close()


async def open_node(
    *,
    ticket: Ticket | str | None = None,
    new_swarm: str | None = None,
    home: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    advertise: Sequence[str] = (),
    is_dial_only: bool = False,
    limits: NetworkLimits | None = None,
    is_revoked: IsRevoked = lambda permission: False,
    new_tracing: "Callable[[PeerId], Tracing] | None" = None,
) -> RealNode:
    """Join the swarm of `ticket`, or found one called `new_swarm`; exactly one of the two is given.

    `host` and `port`: where to listen (port 0: any that is free). `advertise`: the host:port pairs under which others
    reach that, by default the bound address, or this machine's addresses if `host` stands for all of them.
    `is_dial_only`: accept no calls; peers are called, and call back over the same stream. `new_tracing`: makes the
    node's spans.

    Raises:
        ValueError: a bad ticket, a port in use, a home in use; one sentence each.
    """
    if (ticket is None) == (new_swarm is None):
        raise ValueError("give a ticket to join a swarm, or a name to found one, not both and not neither")
    if new_swarm is not None and is_dial_only:
        raise ValueError("the founder of a swarm must accept calls, or nobody can join it")
    keep_freed_memory()
    parsed = Ticket.parse(ticket, time.time()) if isinstance(ticket, str) else ticket
    opened = Home(home)
    try:
        return await _open(
            opened, parsed, new_swarm, host, port, advertise, is_dial_only, limits, is_revoked, new_tracing
        )
    except BaseException:
        opened.close()
        raise


async def _open(
    home: Home,
    ticket: Ticket | None,
    new_swarm: str | None,
    host: str,
    port: int,
    advertise: Sequence[str],
    is_dial_only: bool,
    limits: NetworkLimits | None,
    is_revoked: IsRevoked,
    new_tracing: "Callable[[PeerId], Tracing] | None",
) -> RealNode:
    clock, identity, traffic = LoopClock(), home.identity(), TrafficMeter()
    now = clock.wall_seconds()
    if new_swarm is not None:
        ticket = home.authority(new_swarm, now).ticket((), now + FOUNDER_TICKET_SECONDS, now)
    assert ticket is not None
    note = Notes(identity.peer, clock.wall_seconds)
    tracing = new_tracing(identity.peer) if new_tracing is not None else None
    network = GrpcNetwork(identity, ticket, traffic, note, clock.wall_seconds, limits, is_revoked, tracing)
    endpoints: tuple[str, ...] = ()
    if not is_dial_only:
        bound = await network.open(host, port)
        endpoints = tuple(advertise) or tuple(_join(name, bound) for name in _reachable_hosts(host))
        network.advertise(endpoints)
    if new_swarm is not None:
        ticket = ticket.meeting_at([Meeting(identity.peer, endpoints)])
    for meeting in ticket.meetings:
        network.introduce(meeting.peer, Contact(endpoints=meeting.endpoints))
        if is_dial_only:
            network.keep(meeting.peer)
    relays = tuple(meeting.peer for meeting in ticket.meetings) if is_dial_only else ()
    compute = ThreadCompute()
    world = World(
        clock=clock,
        network=network,
        compute=compute,
        store=home.store,
        journal=home.journal,
        random=_Streams(),
        note=note,
        traffic=traffic,
    )
    return RealNode(home, identity, ticket, world, network, compute, Contact(endpoints, relays), note)


class _Streams:
    """Streams of randomness by purpose, seeded by the operating system."""

    def __init__(self) -> None:
        self._streams: dict[str, random.Random] = {}

    def __call__(self, purpose: str) -> random.Random:
        return self._streams.setdefault(purpose, random.Random(random.SystemRandom().getrandbits(256)))


def _reachable_hosts(host: str) -> list[str]:
    """What others may call this machine by when it listens on `host`."""
    if host not in ("0.0.0.0", "::", "[::]"):
        return [host]
    families = (socket.AF_INET,) if host == "0.0.0.0" else (socket.AF_INET, socket.AF_INET6)
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in families and "%" not in address.address
    ]
    outside = [name for name in found if not ipaddress.ip_address(name).is_loopback]
    return outside or found


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
