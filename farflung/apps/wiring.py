"""The composition root: opens a real node and starts on it the roles that make it a member of its swarm.

node = runtime's doors        rendezvous, directory, reach = mesh's roles        systems add their own
"""

import asyncio
import atexit
import contextlib
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from farflung.apps.joining import JoinFailed, Losses, has_joined, why_not_joined
from farflung.apps.tracing import tracing_wanted
from farflung.mesh.chronicle import Chronicle
from farflung.mesh.config import Profile
from farflung.mesh.directory import Rendezvous
from farflung.mesh.member import Member
from farflung.mesh.messages import (
    CHRONICLE_ACTOR,
    DIRECTORY_ACTOR,
    REACH_ACTOR,
    RENDEZVOUS_ACTOR,
    REVOCATIONS_ACTOR,
    Decision,
)
from farflung.mesh.revocations import Revocations
from farflung.mesh.surveyor import Surveyor
from farflung.runtime.limits import limits_for
from farflung.runtime.node import RealNode, open_node
from farflung.runtime.thread import LoopThread
from farflung.wire.certificate import TicketRole
from farflung.wire.revocation import Revocation
from farflung.world.address import PeerId
from farflung.world.doors import Contact, World
from farflung.world.host import Host

REACH_TOPIC = "reach"
JOIN_SECONDS_MAX = 10.0
"""How long to wait for a rendezvous node of the swarm."""
LOOK_SECONDS = 0.02
ONE_WAY_VARIABLE = "FARFLUNG_ONE_WAY_SECONDS"
"""Set for processes whose links to others are made that long."""
GOODBYE_SECONDS = 0.2
"""Long enough for the last messages to leave."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and how a node takes part."""

    home: Path | None = None
    """None: FARFLUNG_HOME, or the user's data folder."""
    host: str = "127.0.0.1"
    port: int = 0
    """0: any that is free."""
    advertise: Sequence[str] = ()
    """host:port pairs under which others reach it; none: where it listens."""
    is_dial_only: bool = False
    """It accepts no calls."""
    is_rendezvous: bool = False
    """It keeps the directory for others."""
    site: str = ""


@dataclass(slots=True)
class SwarmNode:
    """A node that is a member of its swarm."""

    node: RealNode
    member: Member
    surveyor: Surveyor
    revocations: Revocations
    losses: Losses = field(default_factory=Losses)
    hosts: list[Host] = field(default_factory=list[Host])
    """The roles on this node, in order of their start; the first two are the member's and that of revocations."""

    @property
    def world(self) -> World:
        """The node's doors."""
        return self.node.world

    @property
    def peer(self) -> PeerId:
        """This node."""
        return self.node.identity.peer

    def host(self, role: Any, actor: str) -> Host:
        """Start one more role."""
        host = Host(role, self.world, actor)
        self.hosts.append(host)
        return host

    def publish(self, topic: str, content: bytes | None) -> None:
        """Announce something under a topic from now on."""
        self.hosts[0].perform(self.member.publish(topic, content, self.world.clock.now()))

    def withdraw(self, revocation: Revocation) -> None:
        """Let the swarm know that a ticket is withdrawn.

        Raises:
            ChainRefused: it proves nothing.
        """
        self.hosts[1].perform(self.revocations.withdraw(revocation, self.world.clock.now()))

    async def wait_joined(self, seconds_max: float = JOIN_SECONDS_MAX) -> None:
        """Return once this node has joined the swarm; see `has_joined`.

        Raises:
            JoinFailed: nobody let it in in time, or they refused; the sentence says why.
        """
        ticket = self.node.ticket
        deadline = self.world.clock.now() + seconds_max
        while not has_joined(self.member, ticket, is_late=(is_late := self.world.clock.now() >= deadline)):
            if is_late:
                raise JoinFailed(why_not_joined(self.member, ticket, self.losses, seconds_max))
            await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """Say goodbye and leave."""
        self.hosts[0].perform(self.member.leave(self.world.clock.now()))
        await asyncio.sleep(GOODBYE_SECONDS)
        for host in reversed(self.hosts):
            host.stop()
        await self.node.close()


async def join(place: Place, *, ticket: str | None = None, new_swarm: str | None = None) -> SwarmNode:
    """Open a node and take part in the swarm of `ticket`, or found one called `new_swarm`; does not wait for answers.

    Raises:
        ValueError: a bad ticket, a port or a home in use.
    """
    withdrawn: list[Revocations] = []  # there is one as soon as the node is open
    node = await open_node(
        ticket=ticket,
        new_swarm=new_swarm,
        home=place.home,
        host=place.host,
        port=place.port,
        advertise=place.advertise,
        is_dial_only=place.is_dial_only,
        limits=limits_for(float(os.environ.get(ONE_WAY_VARIABLE, "0"))),
        is_revoked=lambda permission: any(role.covers(permission) for role in withdrawn),
        new_tracing=tracing_wanted(),
    )
    clock = node.world.clock
    offset_seconds = clock.wall_seconds() - clock.now()
    rendezvous = {meeting.peer: Contact(endpoints=meeting.endpoints) for meeting in node.ticket.meetings}
    own = Profile(role=node.role, contact=node.contact, site=place.site, is_rendezvous=place.is_rendezvous)
    granted = node.network.role
    member = Member(node.identity, own, rendezvous, wall_offset_seconds=offset_seconds, granted=granted)
    swarm_node: SwarmNode
    surveyor = Surveyor(
        node.identity.peer,
        member.view,
        lambda table: swarm_node.publish(REACH_TOPIC, table),
        bytes_per_second=node.world.network.bytes_per_second,
        is_wanted=lambda record: bool(record.topics) and record.role is not TicketRole.CLIENT,
    )
    revocations = Revocations(
        node.identity.peer,
        member.view,
        authority=node.ticket.authority,
        swarm_id=node.ticket.swarm_id,
        wall_offset_seconds=offset_seconds,
        on_news=node.network.close_revoked,
    )
    withdrawn.append(revocations)
    swarm_node = SwarmNode(node, member, surveyor, revocations)
    node.world.network.listen(swarm_node.losses.ACTOR, swarm_node.losses)
    swarm_node.host(member, DIRECTORY_ACTOR)
    swarm_node.host(revocations, REVOCATIONS_ACTOR)
    if place.is_rendezvous:
        role = Rendezvous(node.identity.peer, rendezvous, wall_offset_seconds=offset_seconds, granted=granted)
        swarm_node.host(role, RENDEZVOUS_ACTOR)
    swarm_node.host(surveyor, REACH_ACTOR)
    swarm_node.host(Chronicle(clock.wall_seconds(), lambda after: _decisions(node, after)), CHRONICLE_ACTOR)
    return swarm_node


def _decisions(node: RealNode, after: int) -> list[Decision]:
    return [Decision(*kept) for kept in node.notes.after(after)]


class LoopBridge:
    """How synchronous code reaches the loop on which a node lives."""

    def __init__(self, thread: LoopThread) -> None:
        async def own_loop() -> asyncio.AbstractEventLoop:
            return asyncio.get_running_loop()

        self._thread = thread
        self._loop = thread.run(own_loop())

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run to the end and return the result; called from outside the loop's thread."""
        return self._thread.run(coroutine)

    def call(self, function: Callable[[], Result]) -> Result:
        """Call `function` on the loop and return what it returns; called from outside the loop's thread."""

        async def on_loop() -> Result:
            return function()

        return self.run(on_loop())

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call `function` on the loop soon; nothing happens once the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)


class Connection:
    """A membership for synchronous code: a node of its own on a loop in a thread of its own.

    It keeps nothing, so it lives in a home that is removed with it; any number can run beside a server.
    """

    def __init__(self, ticket: str | None, place: Place | None = None, *, new_swarm: str | None = None) -> None:
        """Join at a place (its home is not used), by default as one who only dials; or found a swarm there.

        Raises:
            ValueError: a bad ticket, a port in use.
            JoinFailed: nobody of the swarm answered.
        """
        self._folder = TemporaryDirectory(prefix="farflung-client-")
        self._thread = LoopThread()
        self._is_closed = False
        self.bridge = LoopBridge(self._thread)
        here = replace(place or Place(is_dial_only=True), home=Path(self._folder.name))
        try:
            self.node = self.bridge.run(join(here, ticket=ticket, new_swarm=new_swarm))
            self._or_close(self.node.wait_joined())
        except BaseException:
            self._thread.close()
            self._folder.cleanup()
            raise
        atexit.register(self.close)  # registered after the thread's own end, so it comes before it

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the swarm. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        atexit.unregister(self.close)
        self.bridge.run(self.node.close())
        self._thread.close()
        self._folder.cleanup()

    def _or_close(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self.bridge.run(work)
        except BaseException:
            self.bridge.run(self.node.close())
            raise
