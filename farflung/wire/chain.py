"""What a chain of certificates proves: who its owner is and what it may do (`wire.certificate` has the picture).

TLS verifies the signatures, dates and path lengths of a chain that it sees; `check_chain` verifies them again (relayed
peers come without TLS, and TLS shows a dialler nothing) and what TLS does not know: that no permission is wider or
longer than its parent or has been withdrawn, and whose peer it is.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from farflung.wire.certificate import (
    NUM_PERMISSIONS_MAX,
    ChainRefused,
    TicketRole,
    binding,
    binding_of,
    expiry,
    key_bytes,
    path_length,
    role_of,
)
from farflung.wire.identity import peer_id, verify
from farflung.world.address import PeerId


class Permission(NamedTuple):
    """One permission of a chain."""

    serial: int
    role: TicketRole
    depth: int
    """How many permissions lead to it, itself included: 1 for one that the authority made."""


IsRevoked = Callable[[Permission], bool]


@dataclass(frozen=True, slots=True)
class Member:
    """What a checked chain proves."""

    peer: PeerId
    permissions: tuple[Permission, ...]
    """The last one is its ticket's."""
    expires_at: float
    """Wall-clock seconds."""
    tls_key_hash: bytes
    """SHA-256 of the leaf's TLS public key."""
    public_key: bytes
    """Ed25519."""

    @property
    def role(self) -> TicketRole:
        """What it may do."""
        return self.permissions[-1].role


def check_chain(
    chain: Sequence[x509.Certificate],
    authority: x509.Certificate,
    now: float,
    is_revoked: IsRevoked = lambda permission: False,
) -> Member:
    """Who the owner of `chain` (leaf first, authority left out) is and what it may do.

    Raises:
        ChainRefused: anything is wrong with it.
    """
    if not 2 <= len(chain) <= NUM_PERMISSIONS_MAX + 1:
        raise ChainRefused(f"a chain of {len(chain)} certificates cannot lead to the swarm's authority")
    permissions = check_permissions(chain[:0:-1], authority, now, is_revoked)
    leaf = chain[0]
    _check_issued(leaf, chain[1], now)
    public_key, signature = binding_of(leaf)
    tls_key = key_bytes(leaf.public_key())
    if not verify(public_key, binding(tls_key), signature):
        raise ChainRefused("the certificate's TLS key is not signed by the peer that it names")
    tls_key_hash = hashlib.sha256(tls_key).digest()
    return Member(peer_id(public_key), permissions, expiry(leaf), tls_key_hash, public_key)


def check_permissions(
    permissions: Sequence[x509.Certificate],
    authority: x509.Certificate,
    now: float,
    is_revoked: IsRevoked = lambda permission: False,
) -> tuple[Permission, ...]:
    """What `permissions` (first below the authority first) grant.

    Raises:
        ChainRefused: one is wider or longer than its parent, expired, revoked, or not its parent's.
    """
    issuer, role, length_max = authority, TicketRole.ADMIN, NUM_PERMISSIONS_MAX
    found: list[Permission] = []
    for permission in permissions:
        _check_issued(permission, issuer, now)
        granted, length = role_of(permission), path_length(permission)
        if length > length_max:
            raise ChainRefused("the ticket was made from one that may not invite")
        if not role.may_grant(granted):
            raise ChainRefused(f"a {role} ticket cannot grant the role {granted}")
        if granted is not TicketRole.ADMIN and length > 0:
            raise ChainRefused(f"a {granted} ticket cannot make further tickets")
        found.append(Permission(permission.serial_number, granted, len(found) + 1))
        if is_revoked(found[-1]):
            raise ChainRefused("the ticket has been revoked")
        issuer, role, length_max = permission, granted, length - 1
    return tuple(found)


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, now: float) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        raise ChainRefused("the certificates do not lead to this swarm's authority") from None
    if expiry(certificate) > expiry(issuer):
        raise ChainRefused("a certificate outlives the one it was made from")
    if now >= expiry(certificate):
        raise ChainRefused("the ticket has expired")
    if now < certificate.not_valid_before_utc.timestamp():
        raise ChainRefused("the ticket is not valid yet; check this machine's clock")
