"""Withdrawing a ticket: a statement, signed with an admin's ticket, that every node can check by itself.

An admin withdraws any ticket of another role, and those admins' tickets that are further from the founder than its own.
Whoever has a ticket withdrawn has no more say, but what an admin withdrew before stands: a swarm in which statements
arrive in different orders must come to the same end, and the safe one.
"""

from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from farflung.wire.certificate import CLOCK_SKEW_SECONDS, ChainRefused, TicketRole, load_chain
from farflung.wire.chain import Permission, check_permissions
from farflung.wire.ticket import Ticket

SERIAL_BYTES = 20
_CURVE_HASH = ec.ECDSA(hashes.SHA256())


class Withdrawn(NamedTuple):
    """What a checked statement proves."""

    serial: int
    depth: int
    """Of the admin who says so; see `Permission`."""

    def covers(self, permission: Permission) -> bool:
        """Whether that permission is withdrawn by it."""
        is_within_reach = permission.role is not TicketRole.ADMIN or permission.depth > self.depth
        return permission.serial == self.serial and is_within_reach


class Revocation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The statement. Believe nothing in it before `check`."""

    swarm_id: bytes
    serial: bytes
    """Of the withdrawn permission, big-endian."""
    expires_at: float
    """Wall-clock second at which the withdrawn ticket ends by itself, and the statement may be forgotten."""
    issued_at: float
    permissions: tuple[bytes, ...]
    """Of the admin who says so: below the authority first, DER."""
    signature: bytes

    def content(self) -> bytes:
        """What is signed."""
        parts = (self.swarm_id, self.serial, self.expires_at, self.issued_at, self.permissions)
        return b"farflung revocation\0" + msgspec.msgpack.encode(parts)


def revoke(admin: Ticket, serial: int, expires_at: float, now: float) -> Revocation:
    """Withdraw the ticket of that number, which ends by itself at `expires_at`, in the name of an admin's ticket.

    Raises:
        ValueError: the ticket is no admin's, or the number cannot be one.
    """
    if admin.role is not TicketRole.ADMIN:
        raise ValueError(f"a {admin.role} ticket cannot revoke others; ask an admin of the swarm")
    if not 0 < serial < 1 << (8 * SERIAL_BYTES):
        raise ValueError("that is not the number of a ticket")
    _, key = admin.own_permission()
    draft = Revocation(
        swarm_id=admin.swarm_id,
        serial=serial.to_bytes(SERIAL_BYTES, "big"),
        expires_at=expires_at,
        issued_at=now,
        permissions=admin.permissions,
        signature=b"",
    )
    return msgspec.structs.replace(draft, signature=key.sign(draft.content(), _CURVE_HASH))


def check(revocation: Revocation, authority: bytes, swarm_id: bytes, now: float) -> Withdrawn:
    """What it proves; `authority`: the swarm's certificate, DER; `now`: wall-clock seconds.

    Raises:
        ChainRefused: it is not of this swarm, not an admin's, from the future, or altered.
    """
    if revocation.swarm_id != swarm_id:
        raise ChainRefused("the revocation is of another swarm")
    if len(revocation.serial) != SERIAL_BYTES or not revocation.permissions:
        raise ChainRefused("the revocation has no number, or nobody's name")
    if revocation.issued_at > now + CLOCK_SKEW_SECONDS:
        raise ChainRefused("the revocation is from the future; check this machine's clock")
    chain = load_chain(revocation.permissions)
    # As of when it was signed: what an admin withdrew stays withdrawn when its own ticket has ended.
    (root,) = load_chain((authority,))
    granted = check_permissions(chain, root, revocation.issued_at)[-1]
    if granted.role is not TicketRole.ADMIN:
        raise ChainRefused(f"a {granted.role} ticket cannot revoke others")
    _verify(chain[-1].public_key(), revocation)
    return Withdrawn(int.from_bytes(revocation.serial, "big"), granted.depth)


def _verify(key: object, revocation: Revocation) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ChainRefused("the admin's key is not an elliptic-curve key")
    try:
        key.verify(revocation.signature, revocation.content(), _CURVE_HASH)
    except InvalidSignature:
        raise ChainRefused("the revocation is not signed by the admin that it names") from None


def may_revoke(admin: Ticket, other: Ticket) -> bool:
    """Whether a statement of `admin` would be of any effect on `other`."""
    permission = Permission(other.serial, other.role, len(other.permissions))
    return admin.role is TicketRole.ADMIN and Withdrawn(other.serial, len(admin.permissions)).covers(permission)


def number_text(serial: int) -> str:
    """The number of a ticket as people write it."""
    return f"{serial:0{2 * SERIAL_BYTES}x}"
