"""Frames by which two nodes open, keep and share their link, beside the messages of their actors.

A frame is either an envelope (`wire.message`: a msgpack array of three, first byte 0x93) or one of the values below (a
msgpack map, first byte 0x8n), so that neither needs a header and neither is copied.

    dialler                         acceptor
       │ ── Hello(versions, nonce) ──> │   who the dialler is, TLS has proven
       │ <── Welcome(version, proof) ─ │   who the acceptor is, the proof shows (or Decline says why not)
       │ ── Ready ───────────────────> │   only now does the acceptor take the stream as its link
"""

from typing import Any

import msgspec

from farflung.wire.identity import sign, verify
from farflung.wire.message import WIRE_VERSION_MAX, WIRE_VERSION_MIN
from farflung.world.address import PeerId

NONCE_BYTES = 32
PART_BYTES_MAX = (1 << 20) + 4096
"""Large messages travel in parts of at most this size: whole MiB, with what is around them, leave no small rest."""
FRAME_BYTES_MAX = PART_BYTES_MAX + 4096
"""No frame is larger; gRPC refuses longer ones before they are in memory."""


class MalformedFrame(ValueError):
    """Bytes that are no frame of this protocol."""


class Control(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True, tag_field="control"):
    """Base of all control frames."""


class Hello(Control, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """First frame of a dialler. Later versions may add fields, hence unknown ones are passed over."""

    version_min: int
    version_max: int
    nonce: bytes
    link: bytes = b""
    """Empty for a new link; for one more lane of an open link, the name that its Welcome gave it."""


class Welcome(Control, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The acceptor agrees, and proves that it is the peer that was dialled."""

    version: int
    link: bytes
    public_key: bytes
    signature: bytes
    chain: tuple[bytes, ...]
    """The acceptor's certificates, DER, leaf first, without the authority: TLS shows the dialler none of them."""


class Decline(Control, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The acceptor does not agree; nothing follows."""

    reason: str
    is_linked: bool = False
    """There is no fault: the acceptor's own call to the dialler has come first."""


class Ready(Control, frozen=True, kw_only=True):
    """The dialler takes the stream as its link."""


class Ping(Control, frozen=True, kw_only=True):
    """Are you there?"""

    number: int


class Pong(Control, frozen=True, kw_only=True):
    """Yes."""

    number: int


class OpenLanes(Control, frozen=True, kw_only=True):
    """Dial bulk lanes, please: only the side that dialled the link surely can."""


class Part(Control, frozen=True, kw_only=True):
    """A piece of a large message."""

    message: int
    """Number of the message on this link and direction, counted from 0."""
    offset: int
    num_bytes_total: int
    data: memoryview


class Arrived(Control, frozen=True, kw_only=True):
    """All parts of a large message have come."""

    message: int


class Goodbye(Control, frozen=True, kw_only=True):
    """The link ends on purpose."""

    reason: str


class Relayed(Control, frozen=True, kw_only=True):
    """A frame (`wire.sealed`) that a relay passes on, to a peer that holds a stream of its own to it."""

    source: PeerId
    destination: PeerId
    is_bulk: bool
    data: memoryview


class RelayFailed(Control, frozen=True, kw_only=True):
    """The relay could not pass a frame on."""

    destination: PeerId
    reason: str


_encoder = msgspec.msgpack.Encoder()
_Any = Hello | Welcome | Decline | Ready | Ping | Pong | OpenLanes | Part | Arrived | Goodbye | Relayed | RelayFailed
_decoder = msgspec.msgpack.Decoder(_Any)


def part_bytes(num_bytes_total: int) -> int:
    """Length of all parts of a message but the last, which is not longer; both sides compute it."""
    return -(-num_bytes_total // -(-num_bytes_total // PART_BYTES_MAX))


def encode_control(frame: Control) -> bytes:
    """Bytes of a control frame."""
    return _encoder.encode(frame)


def is_control(frame: bytes) -> bool:
    """Whether a frame is a control frame rather than an envelope."""
    return bool(frame) and frame[0] & 0xF0 == 0x80


def decode_control(frame: bytes) -> Control:
    """The control frame that `frame` holds; a part's data are a view into it.

    Raises:
        MalformedFrame: anything else.
    """
    try:
        return _decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedFrame(str(error)) from None


def common_version(hello: Hello) -> int | None:
    """The highest version that both sides speak, else None."""
    version = min(hello.version_max, WIRE_VERSION_MAX)
    return version if version >= max(hello.version_min, WIRE_VERSION_MIN) else None


def no_common_version(hello: Hello) -> str:
    """The sentence for both sides' people."""
    return (
        f"no common version of the wire format: the dialler speaks {hello.version_min} to {hello.version_max}, "
        f"the acceptor {WIRE_VERSION_MIN} to {WIRE_VERSION_MAX}; update the older one"
    )


def prove_acceptor(private_key: bytes, proven: "Proven") -> bytes:
    """The acceptor's signature over what ties it to this one handshake."""
    return sign(private_key, _to_be_signed(proven))


def is_proof(public_key: bytes, signature: bytes, proven: "Proven") -> bool:
    """Whether `prove_acceptor` made it with the key of `public_key`."""
    return verify(public_key, _to_be_signed(proven), signature)


class Proven(msgspec.Struct, frozen=True, array_like=True):
    """What an acceptor signs. The dialler's TLS key is in it as the acceptor saw it, so that nobody in between can pass
    the proof on; the nonce, so that nobody can use it twice."""

    swarm_id: bytes
    nonce: bytes
    dialler: PeerId
    dialler_tls_key_hash: bytes
    acceptor: PeerId
    link: bytes


def _to_be_signed(proven: Any) -> bytes:
    return b"farflung welcome\0" + _encoder.encode(proven)
