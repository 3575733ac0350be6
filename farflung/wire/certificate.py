"""Certificates of a swarm: its authority, the permissions below it, and the leaf that binds a TLS key to a peer.

    authority (self-signed, in the founder's home)
      └── permission (one per ticket; an extension states the role, its not-after is the ticket's expiry)
            └── permission of an invited ticket (only below an admin's)
                  └── leaf (made by each node; an extension holds its Ed25519 key, which signed the TLS key)

What a chain of them proves: `wire.chain`.
"""

import datetime
import enum
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from farflung.wire.identity import KEY_BYTES, Identity, sign
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
    signature = sign(identity.private_key, binding(key_bytes(key.public_key())))
    # A common name holds 64 characters and an id 52.
    draft = _draft(identity.peer, _common_name(issuer), key.public_key(), now, expires_at)
    draft = draft.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    names = x509.SubjectAlternativeName([x509.DNSName(host_name(identity.peer))])
    draft = draft.add_extension(names, critical=False)
    extension = x509.UnrecognizedExtension(_BINDING_OID, identity.public_key + signature)
    return draft.add_extension(extension, critical=False).sign(issuer_key, hashes.SHA256())


def role_of(permission: x509.Certificate) -> TicketRole:
    """The role that a permission states."""
    try:
        return TicketRole(_extension(permission, _ROLE_OID).decode())
    except ValueError:
        raise ChainRefused("a certificate of the chain states no role that is known here") from None


def expiry(certificate: x509.Certificate) -> float:
    """Wall-clock seconds at which it ceases to be valid."""
    return certificate.not_valid_after_utc.timestamp()


def load_chain(chain: Sequence[bytes]) -> list[x509.Certificate]:
    """Certificates of their DER forms. Raises ChainRefused if one is none."""
    try:
        return [x509.load_der_x509_certificate(der) for der in chain]
    except ValueError:
        raise ChainRefused("it holds bytes that are no certificate") from None


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
    unused = [
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    ]
    draft = draft.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    draft = draft.add_extension(x509.KeyUsage(**usage, **dict.fromkeys(unused, False)), critical=True)
    return draft.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _moment(wall_seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(wall_seconds, datetime.UTC)


def key_bytes(public_key: object) -> bytes:
    """The form of a TLS key that is signed and hashed. Raises ChainRefused for a key of another kind."""
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        raise ChainRefused("a certificate's key is not an elliptic-curve key")
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def binding(tls_key: bytes) -> bytes:
    """What a peer signs to say that a TLS key is its own."""
    return b"farflung tls key\0" + tls_key


def binding_of(leaf: x509.Certificate) -> tuple[bytes, bytes]:
    """The Ed25519 key that a leaf names, and its signature of the leaf's TLS key."""
    value = _extension(leaf, _BINDING_OID)
    return value[:KEY_BYTES], value[KEY_BYTES:]


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes:
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except (x509.ExtensionNotFound, ValueError):
        raise ChainRefused("a certificate of the chain was not made by this software") from None
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def path_length(permission: x509.Certificate) -> int:
    """How many permissions may be made below this one. Raises ChainRefused for one that may not sign."""
    try:
        constraints = permission.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        raise ChainRefused("a certificate of the chain may not sign others") from None
    if not constraints.ca or constraints.path_length is None:
        raise ChainRefused("a certificate of the chain may not sign others")
    return constraints.path_length
