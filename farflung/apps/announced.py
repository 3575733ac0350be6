"""Block servers as the directory shows them."""

from collections.abc import Mapping

from farflung.mesh.member import Member
from farflung.mesh.records import Record
from farflung.systems.swarm.info import ServerInfo
from farflung.wire.certificate import TicketRole
from farflung.world.address import PeerId
from farflung.world.errors import PeerMisbehaved

TOPIC = "swarm"
SERVING_ROLES = (TicketRole.SERVER, TicketRole.WORKER, TicketRole.ADMIN)
"""Whose announcements count: a client's ticket does not let it pose as a server."""


class AnnouncedServers:
    """The servers in a member's view, each announcement read once."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._read: dict[PeerId, tuple[bytes, ServerInfo | None]] = {}

    def __call__(self) -> Mapping[PeerId, ServerInfo]:
        """What block servers say of themselves now, in order of their ids; nonsense is left out."""
        view = self._member.view
        found: dict[PeerId, ServerInfo] = {}
        for peer in sorted(view):
            info = self._info(peer, view[peer])
            if info is not None:
                found[peer] = info
        for peer in [peer for peer in self._read if peer not in view]:
            del self._read[peer]
        return found

    def _info(self, peer: PeerId, record: Record) -> ServerInfo | None:
        content = record.topics.get(TOPIC)
        if content is None or record.role not in SERVING_ROLES:
            return None
        known = self._read.get(peer)
        if known is not None and known[0] == content:
            return known[1]
        try:
            info = ServerInfo.from_bytes(content, peer)
        except PeerMisbehaved:
            info = None
        self._read[peer] = (content, info)
        return info
