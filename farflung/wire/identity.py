"""Who a node is: an Ed25519 key, the peer id that is its hash, and envelopes signed with it."""

import base64
import functools
import hashlib
import hmac

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from farflung.world.address import PeerId

KEY_BYTES = 32
"""Length of a private and of a public key."""
PEER_ID_LENGTH = 52
"""Characters of a peer id: 256 bits in base32 without padding, which fits into one label of a host name."""


class BadSignature(ValueError):
    """Bytes that the claimed key did not sign."""


def peer_id(public_key: bytes) -> PeerId:
    """Lower-case base32 of the SHA-256 of a raw public key (32 bytes)."""
    if len(public_key) != KEY_BYTES:
        raise ValueError(f"a public key has {KEY_BYTES} bytes, not {len(public_key)}")
    return PeerId(base64.b32encode(hashlib.sha256(public_key).digest()).decode().rstrip("=").lower())


def sign(private_key: bytes, payload: bytes) -> bytes:
    """Ed25519 signature (64 bytes) of `payload` with a raw private key (32 bytes)."""
    return _loaded(private_key).sign(payload)


def verify(public_key: bytes, payload: bytes, signature: bytes) -> bool:
    """Whether the owner of `public_key` signed `payload`; False also for keys and signatures of a wrong length."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, payload)
    except (InvalidSignature, ValueError):
        return False
    return True


@functools.lru_cache(maxsize=64)
def _loaded(private_key: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(private_key)


class Identity:
    """A node's own key pair."""

    def __init__(self, private_key: bytes) -> None:
        """`private_key`: 32 raw bytes, from `generate` or from what `private_key` gave (simulations: from the seed)."""
        self.private_key = private_key
        self.public_key = _loaded(private_key).public_key().public_bytes_raw()
        self.peer = peer_id(self.public_key)

    @classmethod
    def generate(cls) -> "Identity":
        """A new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    def derive(self, purpose: str, context: bytes) -> bytes:
        """A secret (32 bytes) that this node alone can compute, and computes again, for a purpose and a context."""
        return hmac.digest(self.private_key, _to_be_signed(purpose, context), "sha256")

    def sign(self, purpose: str, content: bytes) -> "Signed":
        """An envelope around `content`; a signature for one purpose is worth nothing for another."""
        return Signed(self.public_key, content, sign(self.private_key, _to_be_signed(purpose, content)))


class Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Content and who signed it. Believe nothing in it before `open`."""

    public_key: bytes
    content: bytes
    signature: bytes

    def open(self, purpose: str) -> tuple[PeerId, bytes]:
        """(peer that signed, content).

        Raises:
            BadSignature: altered, signed by another key, or signed for another purpose.
        """
        if not verify(self.public_key, _to_be_signed(purpose, self.content), self.signature):
            raise BadSignature(f"the signature of this {purpose} is not its author's")
        return peer_id(self.public_key), self.content


def _to_be_signed(purpose: str, content: bytes) -> bytes:
    return b"farflung " + purpose.encode() + b"\0" + content
