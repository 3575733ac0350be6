"""What pages read: the dashboard's own node, looked at on the loop where it lives, once for all viewers."""

import asyncio
import time

from farflung.apps.announced import AnnouncedServers
from farflung.apps.dashboard.swarm_view import SwarmPicture, picture, seen
from farflung.apps.wiring import Connection

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
