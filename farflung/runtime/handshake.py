"""The opening frames of a stream, from both sides: who is there, which version, and whose call counts."""

import asyncio
import secrets
from dataclasses import dataclass

from farflung.runtime.lane import Stream, StreamBroken
from farflung.runtime.limits import NetworkLimits
from farflung.wire.chain import Member
from farflung.wire.control import (
    NONCE_BYTES,
    Control,
    Decline,
    Hello,
    MalformedFrame,
    Proven,
    Ready,
    Welcome,
    common_version,
    decode_control,
    encode_control,
    is_proof,
    no_common_version,
    prove_acceptor,
)
from farflung.wire.identity import Identity, peer_id
from farflung.wire.message import WIRE_VERSION_MAX, WIRE_VERSION_MIN
from farflung.world.address import PeerId

LINK_NAME_BYTES = 16


class Declined(StreamBroken):
    """The acceptor said no; the text is its reason."""


class AlreadyLinked(StreamBroken):
    """The acceptor's own call has come first."""


@dataclass(frozen=True, slots=True)
class Self:
    """What a node needs to know of itself to shake hands."""

    identity: Identity
    swarm_id: bytes
    tls_key_hash: bytes
    chain: tuple[bytes, ...] = ()
    """Its certificates, DER, leaf first."""


async def greet(stream: Stream, me: Self, peer: PeerId, link: bytes = b"") -> Welcome:
    """The dialler's part, but for Ready: what the acceptor says; with `link`, joins one more lane to it.

    Raises:
        Declined, AlreadyLinked, StreamBroken: no link; the text says why.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    hello = Hello(version_min=WIRE_VERSION_MIN, version_max=WIRE_VERSION_MAX, nonce=nonce, link=link)
    match await _exchange(stream, hello):
        case Welcome() as welcome:
            proven = Proven(me.swarm_id, nonce, me.identity.peer, me.tls_key_hash, peer, welcome.link)
            is_peer = len(welcome.public_key) == len(me.identity.public_key) and peer_id(welcome.public_key) == peer
            if not is_peer or not is_proof(welcome.public_key, welcome.signature, proven):
                raise StreamBroken(f"the node that answered could not prove that it is {peer}")
            return welcome
        case Decline(is_linked=True):
            raise AlreadyLinked("its own call came first")
        case Decline(reason=reason):
            raise Declined(f"it declined: {reason[:300]}")
        case other:
            raise StreamBroken(f"it answered Hello with {type(other).__name__}")


async def read_hello(stream: Stream, limits: NetworkLimits) -> Hello:
    """The acceptor's first part.

    Raises:
        StreamBroken: nothing, or something else, came.
        Declined: no common version; the dialler has been told.
    """
    async with asyncio.timeout(limits.dial_seconds_max):
        hello = await read_control(stream)
    if not isinstance(hello, Hello):
        raise StreamBroken(f"it began with {type(hello).__name__} instead of Hello")
    if common_version(hello) is None:
        await decline(stream, no_common_version(hello))
        raise Declined(no_common_version(hello))
    return hello


async def welcome(stream: Stream, me: Self, dialler: Member, hello: Hello, link: bytes) -> None:
    """The acceptor's second part."""
    version = common_version(hello)
    assert version is not None
    proven = Proven(me.swarm_id, hello.nonce, dialler.peer, dialler.tls_key_hash, me.identity.peer, link)
    proof = prove_acceptor(me.identity.private_key, proven)
    key = me.identity.public_key
    answer = Welcome(version=version, link=link, public_key=key, signature=proof, chain=me.chain)
    await stream.write(encode_control(answer))


async def read_ready(stream: Stream, limits: NetworkLimits) -> None:
    """The acceptor's last part."""
    async with asyncio.timeout(limits.dial_seconds_max):
        frame = await read_control(stream)
    if not isinstance(frame, Ready):
        raise StreamBroken(f"it answered Welcome with {type(frame).__name__}")


async def decline(stream: Stream, reason: str, *, is_linked: bool = False) -> None:
    """Say no."""
    await stream.write(encode_control(Decline(reason=reason, is_linked=is_linked)))


async def _exchange(stream: Stream, hello: Hello) -> Control:
    """The answer to Hello, read while Hello is written.

    Who takes no calls says so and ends the stream before Hello has come. The write then fails without a reason, and
    gRPC gives nothing to a read that begins after a failed write: only one that has begun before learns the reason.
    """
    answer, written = await asyncio.gather(
        read_control(stream), stream.write(encode_control(hello)), return_exceptions=True
    )
    if not isinstance(answer, BaseException):
        return answer
    raise written if isinstance(written, BaseException) else answer


async def read_control(stream: Stream) -> Control:
    """One control frame. Raises StreamBroken for anything else."""
    frame = await stream.read()
    if frame is None:
        raise StreamBroken("it ended the stream without an answer")
    try:
        return decode_control(frame)
    except MalformedFrame as error:
        raise StreamBroken(f"it sent what is no frame ({error})") from None
