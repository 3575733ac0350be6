"""Which tickets this user has made on this machine: a small file for each in the home, without the ticket itself."""

import contextlib

import msgspec

from farflung.runtime.home import default_home
from farflung.runtime.store import FileStore
from farflung.wire.certificate import TicketRole
from farflung.wire.chain import Permission
from farflung.wire.revocation import number_text
from farflung.wire.ticket import Ticket

INVITES_FOLDER = "invites"


class Invite(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket that was made here; whoever reads this cannot use it."""

    swarm_id: bytes
    number: str
    """By which it may be withdrawn."""
    role: TicketRole
    depth: int
    """How many permissions lead to it; see `Permission`."""
    made_at: float
    """Wall-clock seconds, like the next."""
    expires_at: float

    @property
    def permission(self) -> Permission:
        """What a revocation would have to cover."""
        return Permission(int(self.number, 16), self.role, self.depth)


def keep(ticket: Ticket, now: float) -> Invite:
    """Remember a ticket that was made at `now` (wall-clock seconds). A home that cannot be written to forgets it."""
    invite = Invite(
        swarm_id=ticket.swarm_id,
        number=number_text(ticket.serial),
        role=ticket.role,
        depth=len(ticket.permissions),
        made_at=now,
        expires_at=ticket.expires_at,
    )
    with contextlib.suppress(OSError):
        _store().write(invite.number, msgspec.json.encode(invite))
    return invite


def kept(swarm_id: bytes, now: float) -> list[Invite]:
    """Those to a swarm, the newest first; what has ended by `now` (wall-clock seconds) is forgotten.

    Raises:
        ValueError: one of the files is damaged, or cannot be read.
    """
    try:
        return _kept(_store(), swarm_id, now)
    except OSError as error:
        raise ValueError(f"the invites made here cannot be read: {error}") from None


def _kept(store: FileStore, swarm_id: bytes, now: float) -> list[Invite]:
    found: list[Invite] = []
    numbers = store.keys()
    for number in numbers:
        content = store.read(number)
        if content is None:
            continue  # another process has forgotten it
        try:
            invite = msgspec.json.decode(content, type=Invite)
        except msgspec.MsgspecError:
            place = default_home() / INVITES_FOLDER / number
            raise ValueError(f"{place} is damaged: remove it; its name is the number of that ticket") from None
        if invite.expires_at <= now:
            store.delete(number)
        elif invite.swarm_id == swarm_id:
            found.append(invite)
    return sorted(found, key=lambda invite: (-invite.made_at, invite.number))


def _store() -> FileStore:
    return FileStore(default_home() / INVITES_FOLDER)
