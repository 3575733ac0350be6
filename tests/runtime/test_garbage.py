"""Members with a ticket that send garbage: they are named and refused, and disturb nobody."""

import asyncio
import random

import msgspec
import pytest

from farflung.runtime.channel import DialledStream
from farflung.runtime.lane import StreamBroken
from farflung.runtime.limits import NetworkLimits
from farflung.wire.control import (
    PART_BYTES_MAX,
    Arrived,
    Decline,
    Hello,
    OpenLanes,
    Part,
    Ping,
    Ready,
    Relayed,
    Welcome,
    decode_control,
    encode_control,
)
from farflung.wire.message import WIRE_VERSION_MAX, WIRE_VERSION_MIN
from farflung.world.address import PeerId
from tests.runtime.conftest import PATIENCE_SECONDS, Swarm, eventually, introduce
from tests.runtime.rogue import Rogue, ended

pytestmark = pytest.mark.loopback


async def test_without_a_common_version_both_sides_read_the_same_sentence(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "farflung")
    a, _ = await swarm.add()
    rogue = Rogue(swarm.ticket(), a.identity.peer, a.endpoints[0])
    stream = await rogue.open()
    await stream.write(encode_control(Hello(version_min=90, version_max=91, nonce=bytes(32))))
    answer = decode_control(await stream.read() or b"")
    assert isinstance(answer, Decline)
    assert answer.reason.startswith(
        f"no common version of the wire format: the dialler speaks 90 to 91, the acceptor {WIRE_VERSION_MIN}"
    )
    await eventually(lambda: answer.reason in caplog.text)
    rogue.close()


async def test_a_hello_of_the_future_with_a_common_version_is_welcome(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    rogue = Rogue(swarm.ticket(), a.identity.peer, a.endpoints[0])
    stream = await rogue.open()
    hello = msgspec.to_builtins(Hello(version_min=1, version_max=9, nonce=bytes(32)), builtin_types=(bytes,))
    await stream.write(msgspec.msgpack.encode({**hello, "a_field_of_version_9": [1, 2]}))
    answer = decode_control(await stream.read() or b"")
    assert isinstance(answer, Welcome)
    assert answer.version == WIRE_VERSION_MAX
    rogue.close()


def garbage(stream: random.Random) -> list[tuple[str, bytes]]:
    """Frames that no honest member sends on an open link, each with what is wrong with it."""
    part = {"message": 0, "offset": 0, "num_bytes_total": 3 * PART_BYTES_MAX, "data": memoryview(bytes(PART_BYTES_MAX))}
    third = PeerId("t" * 52)
    relayed = {"source": third, "destination": third, "is_bulk": False, "data": memoryview(b"")}
    return [
        ("empty", b""),
        ("noise", stream.randbytes(300)),
        ("an envelope of noise", b"\x93" + stream.randbytes(300)),
        ("a map of noise", b"\x82" + stream.randbytes(300)),
        ("an unknown kind", msgspec.msgpack.encode(["a", "echo", {"kind": "NoSuchKind"}])),
        ("an unknown field", msgspec.msgpack.encode(["a", "echo", {"kind": "Refusal", "reason": "r", "more": 1}])),
        ("a wrong type", msgspec.msgpack.encode(["a", "echo", {"kind": "Refusal", "reason": 7}])),
        ("a long name", msgspec.msgpack.encode(["a" * 5000, "echo", {"kind": "Refusal", "reason": "r"}])),
        ("deep nesting", b"\x93" + b"\x91" * 100_000),
        ("random msgpack", msgspec.msgpack.encode([stream.randint(0, 9), {"x": [None, 1.5, "y"]}, b"z"])),
        ("a second Hello", encode_control(Hello(version_min=1, version_max=1, nonce=b""))),
        ("lanes asked of the acceptor", encode_control(OpenLanes())),
        ("a message never sent arrived", encode_control(Arrived(message=3))),
        ("a part with a hole", encode_control(Part(**{**part, "offset": 17}))),
        ("a short part", encode_control(Part(**{**part, "data": memoryview(b"x")}))),
        ("a message over the limit", encode_control(Part(**{**part, "num_bytes_total": 1 << 50}))),
        ("a message of nothing", encode_control(Part(**{**part, "num_bytes_total": 0}))),
        ("a number far ahead", encode_control(Part(**{**part, "message": 1 << 40}))),
        ("another's name", encode_control(Relayed(**relayed))),
        ("over the frame limit", b"\x93" + bytes(3 << 20)),
    ]  # fmt: skip


async def test_a_member_that_sends_garbage_is_named_and_closed_and_disturbs_nobody(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "farflung")
    a, echo_a = await swarm.add()
    b, echo_b = await swarm.add()
    introduce(b, a)
    ticket = swarm.ticket()
    for number, (what, frame) in enumerate(garbage(random.Random(7))):
        rogue = Rogue(ticket, a.identity.peer, a.endpoints[0])
        stream, _ = await rogue.link()
        await eventually(lambda peer=rogue.identity.peer: peer in a.network.links())
        await stream.write(frame)
        assert await ended(stream), what
        # gRPC itself refuses what is too large, and does not say so to the node.
        verdict = "lost " if what == "over the frame limit" else ""
        said = f"{verdict}{rogue.identity.peer}" + ("" if verdict else " broke the protocol")
        await eventually(lambda said=said: said in caplog.text)
        assert rogue.identity.peer not in a.network.links()
        rogue.close()
        echo_b.ask(a.identity.peer, number)
        await eventually(lambda number=number: echo_b.answers()[-1:] == [number])
    assert echo_b.losses() == []
    assert {peer for peer, _ in echo_a.losses()}.isdisjoint({b.identity.peer})


async def test_a_refused_member_is_not_taken_back_at_once(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    rogue = Rogue(swarm.ticket(), a.identity.peer, a.endpoints[0])
    stream, _ = await rogue.link()
    await stream.write(b"\x93garbage")
    assert await ended(stream)
    with pytest.raises(StreamBroken, match="takes no calls from you"):
        await rogue.link()
    rogue.close()


async def test_a_refusal_that_comes_before_the_hello_is_read(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    rogue = Rogue(swarm.ticket(), a.identity.peer, a.endpoints[0])
    stream, _ = await rogue.link()
    await stream.write(b"\x93garbage")
    assert await ended(stream)
    for wait_seconds in (0.0, 0.001, 0.01, 0.1):  # the refusal overtakes the hello at different points
        late = await rogue.open()
        await asyncio.sleep(wait_seconds)
        with pytest.raises(StreamBroken, match="takes no calls from you"):
            await rogue.greet(late)
    rogue.close()


async def test_garbage_instead_of_hello_and_silence_end_the_stream(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    rogue = Rogue(swarm.ticket(), a.identity.peer, a.endpoints[0])
    for frame in (b"", b"\x00\x01", encode_control(Ping(number=1)), bytes(100_000), encode_control(Ready())):
        stream = await rogue.open()
        await stream.write(frame)
        assert await ended(stream)
    stream = await rogue.open()
    await stream.write(encode_control(Hello(version_min=1, version_max=1, nonce=b"", link=b"no such link")))
    assert await ended(stream)
    assert a.network.links() == {}
    rogue.close()


async def test_a_member_cannot_hold_more_streams_than_may(swarm: Swarm) -> None:
    limits = NetworkLimits(dial_seconds_max=PATIENCE_SECONDS)
    a, _ = await swarm.add(limits=limits)
    rogue = Rogue(swarm.ticket(), a.identity.peer, a.endpoints[0])
    streams = [await rogue.open() for _ in range(limits.num_streams_per_peer_max + 4)]
    # The surplus is refused without a Hello; the others are waited for.
    answers = [asyncio.create_task(_first(stream)) for stream in streams]
    await eventually(lambda: sum(one.done() for one in answers) >= 4)
    assert all(isinstance(decode_control(one.result() or b""), Decline) for one in answers if one.done())
    rogue.close()
    await asyncio.wait(answers)
    await eventually(lambda: a.network.peering(rogue.identity.peer).num_streams == 0)


async def _first(stream: DialledStream) -> bytes | None:
    try:
        return await stream.read()
    except StreamBroken:
        return None
