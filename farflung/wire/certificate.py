"""Certificates of a swarm: its authority, the permissions below it, and the leaf that binds a TLS key to a peer.

    authority (self-signed, in the founder's home)
      └── permission (one per ticket; an extension states the role, its not-after is the ticket's expiry)
            └── permission of an invited ticket (only below an admin's)
                  └── leaf (made by each node; an extension holds its Ed25519 key, which signed the TLS key)

TLS verifies the signatures, dates and path lengths of a chain; `check_chain` verifies them again (relayed peers come
without TLS) and what TLS does not know: that no permission is wider or longer than its parent, and whose peer it is.
"""

import datetime
import enum
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from farflung.wire.identity import KEY_BYTES, Identity, peer_id, sign, verify
from farflung.world.address import PeerId

# Below 2.25, the arc where anyone may make an identifier of a UUID.
_ROLE_OID = x509.ObjectIdentifier("2.25.211872359876429482187364523914598236411")
_BINDING_OID = x509.ObjectIdentifier("2.25.211872359876429482187364523914598236412")

CLOCK_SKEW_SECONDS = 3600.0
"""Certificates are valid this long before they are made, because clocks of machines far apart differ."""
NUM_PERMISSIONS_MAX = 6
"""Permissions between the authority and a leaf; bounds how many generations deep admins may invite admins."""


class TicketRole(enum.StrEnum):
    """What a member may do. Client is the narrowest, admin the widest; worker and server are side by side."""

    CLIENT = "client"
    WORKER = "worker"
    SERVER = "server"
    ADMIN = "admin"

    def may_grant(self, other: "TicketRole") -> bool:
        """Whether `other` is no wider than this role."""
        return self is other or self is TicketRole.ADMIN or other is TicketRole.CLIENT


class ChainRefused(ValueError):
    """A chain of certificates that this swarm does not accept, with the reason in words."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a checked chain proves."""

    peer: PeerId
    role: TicketRole
    expires_at: float
    """Wall-clock seconds."""
    tls_key_hash: bytes
    """SHA-256 of the leaf's TLS public key."""
    public_key: bytes
    """Ed25519."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh ECDSA P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def host_name(peer: PeerId) -> str:
    """The name in the leaf of `peer`, which a dialler asks TLS to find there."""
    return f"{peer}.farflung"


def make_authority(name: str, key: ec.EllipticCurvePrivateKey, now: float, expires_at: float) -> x509.Certificate:
    """The self-signed certificate of a swarm called `name`."""
    draft = _draft(name, name, key.public_key(), now, expires_at)
    return _with_authority(draft, key.public_key(), NUM_PERMISSIONS_MAX).sign(key, hashes.SHA256())


def make_permission(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    role: TicketRole,
    path_length: int,
    now: float,
    expires_at: float,
) -> x509.Certificate:
    """A certificate that lets the holder of `key` act as `role`; `path_length` permissions may be made below it."""
    # No two permissions share a name: TLS takes a certificate whose subject is its issuer's for a self-signed one.
    number = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()
    draft = _draft(f"{role} ticket {number}", _common_name(issuer), key.public_key(), now, expires_at)
    draft = _with_authority(draft, key.public_key(), path_length)
    draft = draft.add_extension(x509.UnrecognizedExtension(_ROLE_OID, role.encode()), critical=False)
    return draft.sign(issuer_key, hashes.SHA256())


def make_leaf(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    identity: Identity,
    now: float,
    expires_at: float,
) -> x509.Certificate:
    """The certificate of `identity`'s TLS key."""
    signature = sign(identity.private_key, _binding(_key_bytes(key.public_key())))
    # A common name holds 64 characters and an id 52.
    draft = _draft(identity.peer, _common_name(issuer), key.public_key(), now, expires_at)
    draft = draft.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    names = x509.SubjectAlternativeName([x509.DNSName(host_name(identity.peer))])
    draft = draft.add_extension(names, critical=False)
    extension = x509.UnrecognizedExtension(_BINDING_OID, identity.public_key + signature)
    return draft.add_extension(extension, critical=False).sign(issuer_key, hashes.SHA256())


def check_chain(
    chain: Sequence[x509.Certificate],
    authority: x509.Certificate,
    now: float,
    is_revoked: Callable[[int], bool] = lambda serial: False,
) -> Member:
    """Who the owner of `chain` (leaf first, authority left out) is and what it may do.

    Raises:
        ChainRefused: anything is wrong with it.
    """
    if not 2 <= len(chain) <= NUM_PERMISSIONS_MAX + 1:
        raise ChainRefused(f"a chain of {len(chain)} certificates cannot lead to the swarm's authority")
    permissions = list(reversed(chain[1:]))
    role = check_permissions(permissions, authority, now, is_revoked)
    leaf = chain[0]
    _check_issued(leaf, permissions[-1], now)
    public_key, signature = _binding_of(leaf)
    tls_key = _key_bytes(leaf.public_key())
    if not verify(public_key, _binding(tls_key), signature):
        raise ChainRefused("the certificate's TLS key is not signed by the peer that it names")
    tls_key_hash = hashlib.sha256(tls_key).digest()
    return Member(peer_id(public_key), role, expiry(leaf), tls_key_hash, public_key)


def check_permissions(
    permissions: Sequence[x509.Certificate],
    authority: x509.Certificate,
    now: float,
    is_revoked: Callable[[int], bool] = lambda serial: False,
) -> TicketRole:
    """The role that `permissions` (first below the authority first) grant.

    Raises:
        ChainRefused: one is wider or longer than its parent, expired, revoked, or not its parent's.
    """
    issuer, role, path_length = authority, TicketRole.ADMIN, NUM_PERMISSIONS_MAX + 1
    for permission in permissions:
        _check_issued(permission, issuer, now)
        if is_revoked(permission.serial_number):
            raise ChainRefused("the ticket has been revoked")
        granted, length = role_of(permission), _path_length(permission)
        if length >= path_length:
            raise ChainRefused("the ticket was made from one that may not invite")
        if not role.may_grant(granted):
            raise ChainRefused(f"a {role} ticket cannot grant the role {granted}")
        if granted is not TicketRole.ADMIN and length > 0:
            raise ChainRefused(f"a {granted} ticket cannot make further tickets")
        issuer, role, path_length = permission, granted, length
    return role


def role_of(permission: x509.Certificate) -> TicketRole:
    """The role that a permission states."""
    try:
        return TicketRole(_extension(permission, _ROLE_OID).decode())
    except ValueError:
        raise ChainRefused("a certificate of the chain states no role that is known here") from None


def expiry(certificate: x509.Certificate) -> float:
    """Wall-clock seconds at which it ceases to be valid."""
    return certificate.not_valid_after_utc.timestamp()


def to_der(certificate: x509.Certificate) -> bytes:
    """Its DER form."""
    return certificate.public_bytes(serialization.Encoding.DER)


def to_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Their PEM forms, one after another."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as TLS libraries read it."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


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


def _draft(
    subject: str, issuer: str, public_key: ec.EllipticCurvePublicKey, now: float, expires_at: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now - CLOCK_SKEW_SECONDS))
        .not_valid_after(_moment(expires_at))
    )


def _with_authority(
    draft: x509.CertificateBuilder, public_key: ec.EllipticCurvePublicKey, path_length: int
) -> x509.CertificateBuilder:
    usage = {"key_cert_sign": True, "crl_sign": True, "digital_signature": True}
    unused = (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    )
    draft = draft.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    draft = draft.add_extension(x509.KeyUsage(**usage, **dict.fromkeys(unused, False)), critical=True)
    return draft.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _moment(wall_seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(wall_seconds, datetime.UTC)


def _key_bytes(public_key: object) -> bytes:
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        raise ChainRefused("a certificate's key is not an elliptic-curve key")
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _binding(tls_key: bytes) -> bytes:
    return b"farflung tls key\0" + tls_key


def _binding_of(leaf: x509.Certificate) -> tuple[bytes, bytes]:
    value = _extension(leaf, _BINDING_OID)
    return value[:KEY_BYTES], value[KEY_BYTES:]


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes:
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except (x509.ExtensionNotFound, ValueError):
        raise ChainRefused("a certificate of the chain was not made by this software") from None
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def _path_length(permission: x509.Certificate) -> int:
    try:
        constraints = permission.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        raise ChainRefused("a certificate of the chain may not sign others") from None
    if not constraints.ca or constraints.path_length is None:
        raise ChainRefused("a certificate of the chain may not sign others")
    return constraints.path_length
