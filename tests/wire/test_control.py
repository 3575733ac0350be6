"""Control frames: told apart from envelopes, read back, refused when malformed; versions."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farflung.wire import control
from farflung.wire.control import (
    FRAME_BYTES_MAX,
    PART_BYTES_MAX,
    Arrived,
    Control,
    Goodbye,
    Hello,
    MalformedFrame,
    OpenLanes,
    Part,
    Ping,
    Pong,
    Proven,
    Ready,
    Relayed,
    common_version,
    decode_control,
    encode_control,
    is_control,
    is_proof,
    no_common_version,
    part_bytes,
    prove_acceptor,
)
from farflung.wire.identity import Identity
from farflung.wire.message import WIRE_VERSION_MAX, WIRE_VERSION_MIN, Refusal, encode
from farflung.world.address import PeerId

EXAMPLES: list[Control] = [
    Hello(version_min=1, version_max=2, nonce=bytes(32), link=b"x"),
    control.Welcome(version=1, link=b"x", public_key=bytes(32), signature=bytes(64), chain=(b"leaf", b"permission")),
    control.Decline(reason="full"),
    Ready(),
    Ping(number=2**60),
    Pong(number=0),
    OpenLanes(),
    Part(message=1, offset=2, num_bytes_total=3, data=memoryview(b"abc")),
    Arrived(message=4),
    Goodbye(reason="bye"),
    Relayed(source=PeerId("a"), destination=PeerId("b"), is_bulk=True, data=memoryview(b"abc")),
    control.RelayFailed(destination=PeerId("a"), reason="gone"),
]


@pytest.mark.parametrize("frame", EXAMPLES, ids=lambda frame: type(frame).__name__)
def test_control_frames_read_back_and_are_no_envelopes(frame: Control) -> None:
    data = encode_control(frame)
    assert is_control(data)
    assert decode_control(data) == frame


def test_all_kinds_are_tried_here() -> None:
    assert {type(frame) for frame in EXAMPLES} == set(Control.__subclasses__())


def test_envelopes_are_no_control_frames() -> None:
    assert not is_control(encode("a" * 200, "b" * 200, Refusal(reason="r")))
    assert not is_control(b"")


@given(st.binary(max_size=300))
def test_noise_is_refused_and_never_crashes(noise: bytes) -> None:
    for data in (noise, b"\x82" + noise):
        try:
            frame = decode_control(data)
        except MalformedFrame:
            continue
        assert isinstance(frame, Control)


def test_unknown_fields_are_refused_but_in_the_opening_frames() -> None:
    more = {**msgspec.to_builtins(Ping(number=1)), "more": 1}
    with pytest.raises(MalformedFrame, match="more"):
        decode_control(msgspec.msgpack.encode(more))
    hello = {"control": "Hello", "version_min": 1, "version_max": 1, "nonce": b"", "more": 1}
    assert isinstance(decode_control(msgspec.msgpack.encode(hello)), Hello)


def test_the_largest_relayed_part_fits_a_frame() -> None:
    part = Part(message=2**63, offset=2**30, num_bytes_total=2**30, data=memoryview(bytes(PART_BYTES_MAX)))
    peer = PeerId("a" * 52)
    wrapped = Relayed(source=peer, destination=peer, is_bulk=True, data=memoryview(encode_control(part) + bytes(300)))
    assert len(encode_control(wrapped)) <= FRAME_BYTES_MAX


@given(st.integers(1, 1 << 30))
def test_parts_are_even_and_as_few_as_can_be(num_bytes: int) -> None:
    length = part_bytes(num_bytes)
    num_parts = -(-num_bytes // PART_BYTES_MAX)
    assert length <= PART_BYTES_MAX
    assert (num_parts - 1) * length < num_bytes <= num_parts * length


def test_a_tensor_of_whole_mebibytes_leaves_no_rest() -> None:
    assert -(-((8 << 20) + 1000) // part_bytes((8 << 20) + 1000)) == 8


@given(st.integers(0, 5), st.integers(0, 5))
def test_the_highest_common_version_is_taken(low: int, high: int) -> None:
    hello = Hello(version_min=low, version_max=high, nonce=b"")
    ours, theirs = set(range(WIRE_VERSION_MIN, WIRE_VERSION_MAX + 1)), set(range(low, high + 1))
    assert common_version(hello) == max(ours & theirs, default=None)
    assert f"the dialler speaks {low} to {high}" in no_common_version(hello)


def test_a_proof_holds_for_one_handshake_alone() -> None:
    alice, eve = Identity(bytes(32)), Identity(bytes([1]) * 32)
    proven = Proven(b"swarm", b"nonce", eve.peer, b"key", alice.peer, b"link")
    proof = prove_acceptor(alice.private_key, proven)
    assert is_proof(alice.public_key, proof, proven)
    assert not is_proof(eve.public_key, proof, proven)
    for name in proven.__struct_fields__:
        assert not is_proof(alice.public_key, proof, msgspec.structs.replace(proven, **{name: b"other"}))
