"""Tickets: one line of text with which a node joins a swarm, and from which an admin makes further ones, offline.

A ticket is a bearer's small certificate authority: it carries where the swarm meets, the swarm's authority certificate,
a permission (`wire.certificate`) and that permission's private key. Whoever holds it makes a leaf for its own TLS key.
"""

import base64
import binascii
import datetime
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from farflung.wire import certificate
from farflung.wire.certificate import NUM_PERMISSIONS_MAX, ChainRefused, TicketRole
from farflung.wire.chain import check_permissions
from farflung.wire.identity import Identity
from farflung.world.address import PeerId

PREFIX = "farflung1"
SWARM_NAME_LENGTH_MAX = 60
AUTHORITY_SECONDS = 20 * 365 * 86400.0
"""How long a swarm's authority is valid; no ticket of it can be longer."""
_CHECK_BYTES = 6


class Meeting(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A rendezvous node and where it listens."""

    peer: PeerId
    endpoints: tuple[str, ...]
    """host:port pairs."""


class Ticket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Permission to join a swarm. Whoever reads it may use it: treat its text as a password."""

    swarm: str
    """Name, for people."""
    meetings: tuple[Meeting, ...]
    authority: bytes
    """The swarm's certificate, DER."""
    permissions: tuple[bytes, ...]
    """Certificates below the authority, first below it first, DER; the last is this ticket's own."""
    private_key: bytes
    """Of the last permission; P-256, 32 bytes."""

    @classmethod
    def parse(cls, text: str, now: float) -> "Ticket":
        """The ticket that `text` holds, checked against wall-clock second `now`.

        Raises:
            ValueError: no ticket, damaged, forged, or expired; one sentence that says which and what to do.
        """
        words = "".join(text.split())
        if not words.startswith(PREFIX):
            raise ValueError(f"this is not a ticket: a ticket begins with {PREFIX!r}; `farflung invite` prints one")
        damaged = ValueError("this ticket is damaged (cut off or changed on its way); copy the whole line again")
        try:
            data = base64.urlsafe_b64decode(words[len(PREFIX) :] + "=" * (-len(words[len(PREFIX) :]) % 4))
        except (binascii.Error, ValueError):
            raise damaged from None
        check, body = data[:_CHECK_BYTES], data[_CHECK_BYTES:]
        if hashlib.sha256(body).digest()[:_CHECK_BYTES] != check:
            raise damaged
        try:
            ticket = msgspec.msgpack.decode(body, type=cls)
            ticket._check(now)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise ValueError("this ticket was made by a version of farflung that this one cannot read") from None
        return ticket

    def text(self) -> str:
        """The ticket as one line."""
        body = msgspec.msgpack.encode(self)
        check = hashlib.sha256(body).digest()[:_CHECK_BYTES]
        return PREFIX + base64.urlsafe_b64encode(check + body).decode().rstrip("=")

    @property
    def role(self) -> TicketRole:
        """What its bearer may do."""
        return certificate.role_of(self.chain()[0])

    @property
    def expires_at(self) -> float:
        """Wall-clock seconds."""
        return certificate.expiry(self.chain()[0])

    @property
    def swarm_id(self) -> bytes:
        """Tells swarms of one name apart: SHA-256 of the authority's certificate."""
        return hashlib.sha256(self.authority).digest()

    @property
    def serial(self) -> int:
        """Number of this ticket's permission, by which it can be revoked."""
        return self.chain()[0].serial_number

    def authority_certificate(self) -> x509.Certificate:
        """The swarm's certificate."""
        return _loaded(self.authority)

    def invite(self, role: TicketRole, expires_at: float, now: float, meetings: Sequence[Meeting] = ()) -> "Ticket":
        """A further ticket for `role`, valid until `expires_at` (wall-clock seconds); `meetings` replace this one's.

        Raises:
            ValueError: this ticket may not invite, or not so widely, or not so long.
        """
        if self.role is not TicketRole.ADMIN:
            raise ValueError(f"a {self.role} ticket cannot make further tickets; ask an admin of the swarm")
        if expires_at > self.expires_at:
            raise ValueError(f"a ticket cannot outlive the one it is made from, which ends {_day(self.expires_at)}")
        if expires_at <= now:
            raise ValueError("a ticket must expire in the future")
        length = NUM_PERMISSIONS_MAX - 1 - len(self.permissions) if role is TicketRole.ADMIN else 0
        if role is TicketRole.ADMIN and length < 1:
            raise ValueError("this admin ticket is too many invitations away from the founder to invite further admins")
        parent, parent_key = self.own_permission()
        key = certificate.new_key()
        permission = certificate.make_permission(parent, parent_key, key, role, length, now, expires_at)
        return Ticket(
            swarm=self.swarm,
            meetings=tuple(meetings) or self.meetings,
            authority=self.authority,
            permissions=(*self.permissions, certificate.to_der(permission)),
            private_key=_secret(key),
        )

    def meeting_at(self, meetings: Sequence[Meeting]) -> "Ticket":
        """The same permission with other rendezvous nodes."""
        return msgspec.structs.replace(self, meetings=tuple(meetings))

    def issue(self, identity: Identity, now: float) -> "Credentials":
        """What `identity` needs to speak TLS in the swarm: a fresh TLS key and its certificates."""
        key = certificate.new_key()
        leaf = certificate.make_leaf(*self.own_permission(), key, identity, now, self.expires_at)
        return Credentials(certificate.key_to_pem(key), (leaf, *self.chain()), self.authority_certificate())

    def own_permission(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The certificate that this ticket's bearer may sign with, and its key."""
        return self.chain()[0], _private(self.private_key)

    def chain(self) -> list[x509.Certificate]:
        """This ticket's permission and those above it, without the authority."""
        return [_loaded(der) for der in reversed(self.permissions)]

    def _check(self, now: float) -> None:
        if not self.permissions:
            raise ValueError("this ticket holds no permission; ask for a new one")
        try:
            chain = self.chain()
            if now >= self.expires_at:
                raise ValueError(
                    f"this ticket expired {_day(self.expires_at)}; ask an admin of the swarm for a new one"
                )
            check_permissions(chain[::-1], self.authority_certificate(), now)
        except ChainRefused as error:
            raise ValueError(f"this ticket is not valid: {error}") from None
        if _private(self.private_key).public_key() != chain[0].public_key():
            raise ValueError("this ticket is not valid: its key is not its permission's")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A node's TLS key and certificates."""

    private_key_pem: bytes
    chain: tuple[x509.Certificate, ...]
    """Leaf first; the authority is left out."""
    authority: x509.Certificate


class SwarmAuthority(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The root of a swarm's trust. Lives in its founder's home and nowhere else."""

    swarm: str
    certificate: bytes
    """DER."""
    private_key: bytes

    @classmethod
    def found(cls, swarm: str, now: float) -> "SwarmAuthority":
        """A new swarm called `swarm`.

        Raises:
            ValueError: a name that is empty or too long.
        """
        if not 0 < len(swarm) <= SWARM_NAME_LENGTH_MAX:
            raise ValueError(f"a swarm's name has 1 to {SWARM_NAME_LENGTH_MAX} characters")
        key = certificate.new_key()
        root = certificate.make_authority(swarm, key, now, now + AUTHORITY_SECONDS)
        return cls(swarm=swarm, certificate=certificate.to_der(root), private_key=_secret(key))

    @classmethod
    def from_bytes(cls, data: bytes) -> "SwarmAuthority":
        """What `to_bytes` gave."""
        return msgspec.msgpack.decode(data, type=cls)

    def to_bytes(self) -> bytes:
        """For the founder's home. Secret."""
        return msgspec.msgpack.encode(self)

    def ticket(self, meetings: Sequence[Meeting], expires_at: float, now: float) -> Ticket:
        """The first admin ticket."""
        root, root_key, key = _loaded(self.certificate), _private(self.private_key), certificate.new_key()
        length = NUM_PERMISSIONS_MAX - 1
        permission = certificate.make_permission(root, root_key, key, TicketRole.ADMIN, length, now, expires_at)
        return Ticket(
            swarm=self.swarm,
            meetings=tuple(meetings),
            authority=self.certificate,
            permissions=(certificate.to_der(permission),),
            private_key=_secret(key),
        )


@functools.lru_cache(maxsize=256)
def _loaded(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        raise ChainRefused("it holds bytes that are no certificate") from None


def _private(secret: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        return ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1())
    except ValueError:
        raise ValueError("this ticket is not valid: it holds bytes that are no key") from None


def _secret(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")


def _day(wall_seconds: float) -> str:
    return "on " + datetime.datetime.fromtimestamp(wall_seconds, datetime.UTC).strftime("%d %B %Y at %H:%M UTC")
