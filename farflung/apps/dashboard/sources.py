"""What pages read: the dashboard's own node, looked at on the loop where it lives, once for all viewers."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from farflung.apps.announced import AnnouncedServers
from farflung.apps.dashboard.events_view import Event, Gathered
from farflung.apps.dashboard.run_log import RunLog
from farflung.apps.dashboard.swarm_view import SwarmPicture, picture, seen, site_of
from farflung.apps.runs.known import known_runs
from farflung.apps.wiring import Connection
from farflung.mesh.messages import CHRONICLE_ACTOR, Decisions
from farflung.world.address import Address, PeerId
from farflung.world.mailbox import Mailbox

ASK_SECONDS, ANSWER_SECONDS_MAX = 1.5, 1.5
"""How often nodes are asked for their decisions, and how long their answers are waited for."""
EVENTS_ACTOR = "dashboard-events"
LOOK_SECONDS = 1.0
"""How often the swarm is looked at, while somebody watches."""


class SwarmSource:
    """The swarm as the dashboard's node sees it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._node = connection.node
        self._announced = AnnouncedServers(self._node.member)
        self._seen: dict[str, tuple[str, int]] = {}
        self._looked_at = -LOOK_SECONDS
        self._picture: SwarmPicture | None = None

    @property
    def name(self) -> str:
        """Of the swarm."""
        return self._node.node.ticket.swarm

    async def picture(self) -> SwarmPicture:
        """As of now, or of a moment ago."""
        now = time.monotonic()
        if self._picture is None or now - self._looked_at >= LOOK_SECONDS / 2:
            self._looked_at = now
            self._picture = await asyncio.to_thread(self._connection.bridge.call, self._look)
        return self._picture

    def _look(self) -> SwarmPicture:
        node, now = self._node, self._node.world.clock.now()
        servers = self._announced()
        self._seen = seen(self._seen, servers)
        view = node.member.view
        measured = {peer: node.surveyor.table.distance(peer, now).round_trip_seconds for peer in sorted(view)}
        round_trips = {peer: seconds for peer, seconds in measured.items() if seconds is not None}
        return picture(self.name, node.peer, view, servers, round_trips, self._seen)


class EventSource:
    """What the nodes of the swarm have decided; they are asked while somebody watches."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._node = connection.node
        self._gathered = Gathered()
        self._asking = asyncio.Lock()
        self._asked_at = -ASK_SECONDS
        self.sites: dict[PeerId, str] = {}
        """Of nodes that have been asked."""

    async def events(self) -> list[Event]:
        """All that is kept, oldest first."""
        async with self._asking:
            if time.monotonic() - self._asked_at >= ASK_SECONDS:
                await asyncio.to_thread(self._connection.bridge.run, self._ask())
                self._asked_at = time.monotonic()
        return self._gathered.events

    async def _ask(self) -> None:
        world, view = self._node.world, self._node.member.view
        self.sites |= {peer: site_of(view[peer]) for peer in view}
        waiting = set(view)
        deadline = world.clock.now() + ANSWER_SECONDS_MAX
        with Mailbox(world, EVENTS_ACTOR) as mailbox:
            for peer in sorted(view):
                mailbox.send(Address(peer, CHRONICLE_ACTOR), self._gathered.question(peer))
            while waiting and (received := await mailbox.receive(deadline)) is not None:
                source, answer = received
                waiting.discard(source.peer)
                if isinstance(answer, Decisions):
                    self._gathered.take(source.peer, answer)


class RunSource:
    """The runs that were given, and those that this user has led on this machine."""

    def __init__(self, given: Sequence[Path]) -> None:
        """Raises ValueError: one of those given is none."""
        self._given = [RunLog.open(folder) for folder in given]
        self._logs = {str(log.folder): log for log in self._given}
        self._reading = asyncio.Lock()

    async def names(self) -> dict[str, str]:
        """Names by folder, those given first."""
        async with self._reading:
            await asyncio.to_thread(self._find)
        return {folder: f"{log.name} ({log.kind})" for folder, log in self._logs.items()}

    async def read(self, folder: str) -> RunLog:
        """The run in a folder that `names` told, up to now.

        Raises:
            ValueError: its log cannot be read.
        """
        async with self._reading:
            await asyncio.to_thread(self._logs[folder].read)
        return self._logs[folder]

    def _find(self) -> None:
        for folder in known_runs():
            if str(folder) not in self._logs:
                with contextlib.suppress(ValueError):  # it is being written, or is of another version
                    self._logs[str(folder)] = RunLog.open(folder)
