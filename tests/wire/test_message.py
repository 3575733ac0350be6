"""Envelopes: read back, refused when malformed, without copying tensors, never crashing on noise."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farflung.wire.message import (
    ACTOR_NAME_LENGTH_MAX,
    TRACEPARENT_LENGTH_MAX,
    MalformedMessage,
    Message,
    NoSuchActor,
    Refusal,
    decode,
    decode_traced,
    encode,
    kind,
)
from farflung.wire.tensor import WireTensor

NAMES = st.text(max_size=30)


class WireExample(Message):
    """All kinds of fields that messages have."""

    number: int
    text: str = ""
    tensor: WireTensor | None = None
    table: dict[str, list[float]] = msgspec.field(default_factory=dict[str, list[float]])


class WireCompact(Message, kw_only=True, array_like=True, tag="w"):
    """A kind that is sent often."""

    number: int
    data: bytes


@given(NAMES, st.text(min_size=20, max_size=ACTOR_NAME_LENGTH_MAX), st.integers(0, 2**60), st.binary(max_size=300))
def test_compact_messages_read_back(source: str, target: str, number: int, data: bytes) -> None:
    message = WireCompact(number=number, data=data)
    assert decode(encode(source, target[:60], message)) == (source, target[:60], message)
    assert kind(message) == "WireCompact"


def test_compact_messages_carry_no_names() -> None:
    assert len(encode("m", "1b", WireCompact(number=9_000, data=bytes(128)))) == 128 + 14


@pytest.mark.parametrize("message", [WireCompact(number=1, data=b"x"), WireExample(number=1)])
def test_a_traceparent_travels_beside_a_message_and_costs_nothing_without(message: Message) -> None:
    parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    assert decode_traced(encode("m", "1b", message, parent)) == ("m", "1b", message, parent)
    assert decode_traced(encode("m", "1b", message)) == ("m", "1b", message, "")
    assert len(encode("m", "1b", message, parent)) == len(encode("m", "1b", message)) + 2 + TRACEPARENT_LENGTH_MAX
    with pytest.raises(MalformedMessage, match="a traceparent is over 55 characters"):
        decode(encode("m", "1b", message, parent + "0"))


def test_a_compact_message_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="x"):
        decode(msgspec.msgpack.encode(["a", "b", ["x", 1, b""]]))


@given(
    NAMES,
    NAMES,
    st.integers(-(2**63), 2**63 - 1),
    st.text(),
    st.dictionaries(NAMES, st.lists(st.floats(allow_nan=False))),
)
def test_messages_read_back(source: str, target: str, number: int, text: str, table: dict[str, list[float]]) -> None:
    message = WireExample(number=number, text=text, table=table)
    assert decode(encode(source, target, message)) == (source, target, message)
    assert kind(message) == "WireExample"


def test_tensor_data_are_a_view_into_the_frame() -> None:
    tensor = WireTensor("float32", (2,), "raw", memoryview(b"12345678"))
    frame = bytearray(encode("a", "b", WireExample(number=1, tensor=tensor)))
    decoded = decode(frame)[2]
    assert isinstance(decoded, WireExample) and decoded.tensor is not None
    assert decoded.tensor.data == b"12345678"
    frame[frame.index(b"12345678")] = ord("x")
    assert decoded.tensor.data == b"x2345678"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"kind": "NoSuchKind"}, "NoSuchKind"),
        ({"reason": "r"}, "kind"),
        ({"kind": "Refusal"}, "reason"),
        ({"kind": "Refusal", "reason": 1}, "reason"),
        ({"kind": "Refusal", "reason": "r", "extra": 1}, "extra"),
        ({"kind": "Message"}, "Message"),
        ([], "array"),
    ],
)
def test_malformed_messages_are_refused_with_what_is_wrong(body: object, sentence: str) -> None:
    with pytest.raises(MalformedMessage, match=sentence):
        decode(msgspec.msgpack.encode(["a", "b", body]))


def test_sizes_have_limits() -> None:
    frame = encode("a", "b", Refusal(reason="x" * 1000))
    assert decode(frame, num_bytes_max=len(frame))[0] == "a"
    with pytest.raises(MalformedMessage, match="over the limit"):
        decode(frame, num_bytes_max=len(frame) - 1)
    longest = "n" * ACTOR_NAME_LENGTH_MAX
    assert decode(encode(longest, longest, NoSuchActor(actor="a")))[0] == longest
    for names in ((longest + "n", "b"), ("a", longest + "n")):
        with pytest.raises(MalformedMessage, match="actor name"):
            decode(encode(*names, NoSuchActor(actor="a")))


@given(st.binary(max_size=400))
def test_noise_is_refused_and_never_crashes(noise: bytes) -> None:
    for frame in (noise, b"\x93" + noise, b"\x93\xa1a\xa1b" + noise):
        try:
            message = decode(frame)[2]
        except MalformedMessage:
            continue
        assert isinstance(message, Message)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_every_damaged_frame_is_a_message_or_refused(position: int, flip: int) -> None:
    tensor = WireTensor("float32", (2,), "raw", memoryview(b"12345678"))
    frame = bytearray(encode("source", "target", WireExample(number=7, text="text", tensor=tensor, table={"a": [1.5]})))
    frame[position % len(frame)] ^= flip
    try:
        message = decode(frame)[2]
    except MalformedMessage:
        return
    assert isinstance(message, Message)


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    with pytest.raises(MalformedMessage):
        decode(b"\x93\xa1a\xa1b" + b"\x91" * 500_000)
