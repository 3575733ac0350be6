"""When a node has joined its swarm, and why one cannot."""

from farflung.mesh.member import Member
from farflung.wire.ticket import Ticket
from farflung.world.address import Address, PeerId
from farflung.world.errors import FarflungError


class JoinFailed(FarflungError):
    """No rendezvous node of the swarm answered."""


class Losses:
    """Hears why peers cannot be reached, for the user who waits."""

    ACTOR = "joining"

    def __init__(self) -> None:
        self.reasons: dict[PeerId, str] = {}

    def deliver(self, source: Address, message: object) -> None:
        """Nobody writes to it."""

    def lost(self, peer: PeerId, reason: str) -> None:
        self.reasons[peer] = reason


def has_joined(member: Member, ticket: Ticket, *, is_late: bool) -> bool:
    """Whether a rendezvous node holds this node's record and has told what it knows, which begins with its own record.

    Where this node is one itself its own word does not count, unless the ticket names it and no other has answered in
    time: a founder is alone, and so is who comes back first after a power cut.
    """
    if any(peer in member.view for peer in member.joined if peer != member.peer):
        return True
    meetings = {meeting.peer for meeting in ticket.meetings}
    return member.peer in member.joined and member.peer in meetings and (is_late or len(meetings) == 1)


def why_not_joined(member: Member, ticket: Ticket, losses: Losses, seconds_max: float) -> str:
    """What to tell a user who has waited so long."""
    if member.refusals:
        return f"swarm {ticket.swarm!r} refuses this node: {next(iter(member.refusals.values()))}"
    heard = losses.reasons
    reasons = [heard[meeting.peer] for meeting in ticket.meetings if meeting.peer in heard]
    places = ", ".join(place for meeting in ticket.meetings for place in meeting.endpoints)
    reason = "; ".join(dict.fromkeys(reasons)) or "no answer"
    return (
        f"swarm {ticket.swarm!r} cannot be joined at {places} within {seconds_max:g} s ({reason}): "
        "check that a server of it runs there and that the ticket is of this swarm"
    )
