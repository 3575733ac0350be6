"""Frames between two peers that only a relay can reach both of: sealed end to end, so that it can forward and no more.

    dialler ── SealedHello(certificates, ephemeral key, signature) ───> acceptor
            <── SealedWelcome(certificates, ephemeral key, signature) ──
            ── SealedFrame(lane, sequence, ChaCha20-Poly1305) ──────────> both ways

Each side signs its fresh X25519 key together with both peers' names and the session's, by the Ed25519 key that its
certificate binds; the agreed secret gives one key for each direction (HKDF-SHA256 over both signatures). Whoever
learns a node's keys later reads nothing of earlier sessions. A frame's nonce is its lane and sequence number, and its
header is authenticated: repeated, reordered (on the ordered lane) or altered frames do not open.
"""

import hashlib
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from farflung.wire.identity import Identity, sign, verify
from farflung.world.address import PeerId

SESSION_BYTES = 16
ORDERED, BULK, CREDIT = 0, 1, 2
"""Lanes: control and small messages in order; parts of large ones in any order; bytes of those that were taken."""
REPLAY_WINDOW = 1024
"""On the bulk lane a frame may be overtaken by this many."""


class BadSeal(ValueError):
    """A frame or greeting that its claimed author did not make for this session."""


class RelayBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True, tag_field="body"):
    """Base of what travels inside `control.Relayed`."""


class CallMe(RelayBody, frozen=True, kw_only=True):
    """I accept calls at these endpoints and you may not: please call, that is the shorter way."""

    endpoints: tuple[str, ...]


class CannotCall(RelayBody, frozen=True, kw_only=True):
    """Answer to CallMe: tried without success."""


class SealedHello(RelayBody, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Opens a session."""

    session: bytes
    version_min: int
    version_max: int
    chain: tuple[bytes, ...]
    """The dialler's certificates, leaf first, without the authority's; DER."""
    ephemeral_key: bytes
    signature: bytes


class SealedWelcome(RelayBody, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Agrees to it."""

    session: bytes
    version: int
    chain: tuple[bytes, ...]
    ephemeral_key: bytes
    signature: bytes


class SealedDecline(RelayBody, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Does not agree, or knows no such session (any more)."""

    session: bytes
    reason: str
    is_linked: bool = False


class SealedFrame(RelayBody, frozen=True, kw_only=True):
    """One frame of an open session."""

    session: bytes
    lane: int
    sequence: int
    sealed: memoryview


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CallMe | CannotCall | SealedHello | SealedWelcome | SealedDecline | SealedFrame)


def encode_body(body: RelayBody) -> bytes:
    """Bytes for `control.Relayed.data`."""
    return _encoder.encode(body)


def decode_body(data: bytes | memoryview) -> Any:
    """One of the bodies above.

    Raises:
        BadSeal: anything else.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadSeal(f"a relayed frame cannot be read ({error})") from None


class Greeting:
    """One side of a session that is being agreed on: a fresh key, and the signature that ties it to the two peers."""

    def __init__(self, identity: Identity, swarm_id: bytes, session: bytes, other: PeerId) -> None:
        self._identity = identity
        self._swarm_id = swarm_id
        self.session = session
        self._other = other
        self._private_key = X25519PrivateKey.generate()
        self.ephemeral_key = self._private_key.public_key().public_bytes_raw()

    def sign(self, answers: bytes, versions: tuple[int, ...]) -> bytes:
        """Signature of this side's key; `answers`: the other side's key that it answers, empty for the dialler's."""
        own = self._identity.peer, self._other, self.ephemeral_key
        return sign(self._identity.private_key, self._to_be_signed(*own, answers, versions))

    def check(
        self, public_key: bytes, ephemeral_key: bytes, answers: bytes, versions: tuple[int, ...], signature: bytes
    ) -> None:
        """Raises BadSeal unless the other side, whose Ed25519 key is `public_key`, made `signature`."""
        payload = self._to_be_signed(self._other, self._identity.peer, ephemeral_key, answers, versions)
        if not verify(public_key, payload, signature):
            raise BadSeal("a greeting is not signed by the peer that it names")

    def agree(self, their_key: bytes, signatures: tuple[bytes, bytes], is_dialler: bool) -> "SealedSession":
        """The open session; `signatures`: the dialler's, then the acceptor's."""
        try:
            secret = self._private_key.exchange(X25519PublicKey.from_public_bytes(their_key))
        except ValueError:
            raise BadSeal("a greeting's key is not one that can be agreed with") from None
        transcript = hashlib.sha256(signatures[0] + signatures[1]).digest()
        keys = HKDF(hashes.SHA256(), 64, salt=self.session, info=b"farflung sealed" + transcript).derive(secret)
        outward, inward = (keys[:32], keys[32:]) if is_dialler else (keys[32:], keys[:32])
        return SealedSession(self.session, self._identity.peer, self._other, outward, inward)

    def _to_be_signed(
        self, source: PeerId, target: PeerId, ephemeral_key: bytes, answers: bytes, versions: tuple[int, ...]
    ) -> bytes:
        content = (self._swarm_id, self.session, source, target, ephemeral_key, answers, versions)
        return b"farflung sealed\0" + _encoder.encode(content)


class SealedSession:
    """Seals frames to one peer and opens its frames."""

    def __init__(self, session: bytes, me: PeerId, other: PeerId, outward_key: bytes, inward_key: bytes) -> None:
        self.session = session
        self._header_out = session + f"{me} {other}".encode()
        self._header_in = session + f"{other} {me}".encode()
        self._outward = ChaCha20Poly1305(outward_key)
        self._inward = ChaCha20Poly1305(inward_key)
        self._next_out = {ORDERED: 0, BULK: 0, CREDIT: 0}
        self._next_in = {ORDERED: 0, CREDIT: 0}
        self._seen: set[int] = set()
        self._seen_below = 0

    def seal(self, lane: int, frame: bytes) -> SealedFrame:
        """The next frame of a lane."""
        sequence = self._next_out[lane]
        self._next_out[lane] += 1
        nonce = _nonce(lane, sequence)
        sealed = memoryview(self._outward.encrypt(nonce, frame, self._header_out + nonce))
        return SealedFrame(session=self.session, lane=lane, sequence=sequence, sealed=sealed)

    def open(self, frame: SealedFrame) -> bytes:
        """The content of the next frame.

        Raises:
            BadSeal: altered, repeated, or out of order on an ordered lane.
        """
        if frame.lane not in self._next_out or not 0 <= frame.sequence < 1 << 63:
            raise BadSeal("a sealed frame of no lane")
        self._check_sequence(frame.lane, frame.sequence)
        nonce = _nonce(frame.lane, frame.sequence)
        try:
            content = self._inward.decrypt(nonce, frame.sealed, self._header_in + nonce)
        except InvalidTag:
            raise BadSeal("a sealed frame was altered on its way") from None
        self._note_sequence(frame.lane, frame.sequence)
        return content

    def _check_sequence(self, lane: int, sequence: int) -> None:
        if lane == BULK:
            is_new = self._seen_below <= sequence < self._seen_below + REPLAY_WINDOW and sequence not in self._seen
        else:
            is_new = sequence == self._next_in[lane]
        if not is_new:
            raise BadSeal("a sealed frame was repeated, reordered or left out on its way")

    def _note_sequence(self, lane: int, sequence: int) -> None:
        if lane != BULK:
            self._next_in[lane] += 1
            return
        self._seen.add(sequence)
        while self._seen_below in self._seen:
            self._seen.remove(self._seen_below)
            self._seen_below += 1


def _nonce(lane: int, sequence: int) -> bytes:
    return lane.to_bytes(4, "big") + sequence.to_bytes(8, "big")
