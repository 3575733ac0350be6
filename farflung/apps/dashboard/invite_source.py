"""What the page *Invite* does: makes tickets with the dashboard's own, keeps their numbers, and withdraws them."""

import asyncio
import time

from farflung.apps.dashboard.invite_view import InvitesView, command_of, invites_view, why_only_look
from farflung.apps.invites import keep, kept
from farflung.apps.meetings import meetings_now
from farflung.apps.revoking import revoke_in_swarm
from farflung.apps.tickets import parse_duration
from farflung.apps.wiring import Connection
from farflung.wire.certificate import TicketRole
from farflung.wire.revocation import revoke


class InviteSource:
    """Of one dashboard, for all its viewers."""

    def __init__(self, connection: Connection, host: str, *, is_loopback: bool) -> None:
        """`host`: where the dashboard listens."""
        self._connection = connection
        self._node = connection.node
        self._admin = connection.node.node.ticket
        self.refusal = why_only_look(self._admin, host, is_loopback=is_loopback)
        """Why it can only be looked at; empty: one may act."""
        self._revoking = asyncio.Lock()

    async def view(self) -> InvitesView:
        """As of now. Raises ValueError: what is kept cannot be read."""
        return await asyncio.to_thread(self._view)

    def _view(self) -> InvitesView:
        made = kept(self._admin.swarm_id, time.time())
        revocations = self._node.revocations
        return self._connection.bridge.call(
            lambda: invites_view(self.refusal, self._admin, made, revocations.withdrawn, revocations.covers)
        )

    async def make(self, role: str, expires: str) -> str:
        """A new ticket that ends after `expires`, such as 12h: the line with which its holder comes in.

        Raises:
            ValueError: it cannot be made.
        """
        assert not self.refusal
        return await asyncio.to_thread(self._make, TicketRole(role), expires)

    def _make(self, role: TicketRole, expires: str) -> str:
        now = time.time()
        first, *others = self._admin.meetings
        meetings = self._connection.bridge.call(lambda: meetings_now(first, self._node.member.view, others))
        ticket = self._admin.invite(role, now + parse_duration(expires), now, meetings)
        keep(ticket, now)
        return command_of(ticket)

    async def revoke(self, number: str) -> str:
        """Withdraw a ticket that was made here; returns, with a sentence, once rendezvous nodes know.

        Raises:
            ValueError: it is not known here any more.
            Unreachable: no rendezvous node has said in time that it knows.
        """
        assert not self.refusal
        async with self._revoking:
            return await asyncio.to_thread(self._revoke, number)

    def _revoke(self, number: str) -> str:
        now = time.time()
        found = [invite for invite in kept(self._admin.swarm_id, now) if invite.number == number]
        if not found:
            raise ValueError("that ticket has ended by itself")
        revocation = revoke(self._admin, found[0].permission.serial, found[0].expires_at, now)
        return self._connection.bridge.run(revoke_in_swarm(self._node, revocation))
