"""Messages: frozen, tagged, validated values that nodes send each other, and the envelope that carries one.

Every message class derives from `Message`, which registers it; decoding refuses unknown kinds and unknown fields.
Tensors travel inside messages as `wire.tensor.WireTensor`. Nothing from a peer is ever unpickled.
"""

import functools
from types import ModuleType
from typing import Any, Union, dataclass_transform

import msgspec

WIRE_VERSION_MIN = 2
WIRE_VERSION_MAX = 2
"""Versions of the wire format that this code speaks; peers agree on the highest common one when they connect."""

MESSAGE_BYTES_MAX = 1 << 30
"""No message, however it travels, is larger than this."""

ACTOR_NAME_LENGTH_MAX = 200
TRACEPARENT_LENGTH_MAX = 55

# Of msgpack: how an envelope shows what its third element is.
STRING_OF_ONE_LENGTH_BYTE = 0xD9
SHORT_STRING, SHORT_STRING_LENGTH_MASK = 0xA0, 0x1F
ARRAY_MASK, SHORT_ARRAY = 0xF0, 0x90
"""An array of at most 15 elements."""


class MalformedMessage(ValueError):
    """Bytes that are no message of this protocol."""


@functools.cache
def _decoder(is_compact: bool) -> msgspec.msgpack.Decoder[Any]:
    kinds = [cls for cls in _concrete(Message) if cls.__struct_config__.array_like == is_compact]
    if not kinds:
        return _decoder(False)  # which says that it knows no such thing
    kinds.sort(key=lambda cls: cls.__name__)
    envelope = msgspec.defstruct(
        "Envelope",
        [
            ("source_actor", str),
            ("target_actor", str),
            ("message", Union[tuple(kinds)]),  # noqa: UP007
            ("traceparent", str, ""),
        ],
        frozen=True,
        array_like=True,
        forbid_unknown_fields=True,
    )
    return msgspec.msgpack.Decoder(envelope)


def _concrete(base: "type[Message]") -> "list[type[Message]]":
    found: list[type[Message]] = []
    for cls in base.__subclasses__():
        found += [cls, *_concrete(cls)]
    return found


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True, tag_field="kind"):
    """Base of all messages. The tag on the wire is the class name, so names are unique over the whole program.

    Subclasses say `kw_only=True` themselves: msgspec does not inherit that option. A kind that is sent often and must
    be small says `array_like=True` and a short tag as well: then neither the names of its fields travel nor its own.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _decoder.cache_clear()


def kinds_of(module: ModuleType) -> frozenset[str]:
    """Names of the messages of a module, as counters of traffic have them."""
    return frozenset(
        name for name, kind in vars(module).items() if isinstance(kind, type) and kind in _concrete(Message)
    )


class Refusal(Message, kw_only=True):
    """The peer understood and says no."""

    reason: str
    """One sentence for a person."""
    retry_after_seconds: float = 0.0
    """When asking again may help; 0: it will not."""


class NoSuchActor(Message, kw_only=True):
    """Nobody of that name lives here (any more)."""

    actor: str


class _Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    source_actor: str
    target_actor: str
    message: Any


class _TracedEnvelope(_Envelope, frozen=True, array_like=True, forbid_unknown_fields=True):
    traceparent: str


_encoder = msgspec.msgpack.Encoder()


def encode(source_actor: str, target_actor: str, message: Message, traceparent: str = "") -> bytes:
    """Bytes of one envelope; `traceparent`: of W3C Trace Context, where a message is followed."""
    if traceparent:
        return _encoder.encode(_TracedEnvelope(source_actor, target_actor, message, traceparent))
    return _encoder.encode(_Envelope(source_actor, target_actor, message))


def decode(
    frame: bytes | bytearray | memoryview, *, num_bytes_max: int = MESSAGE_BYTES_MAX
) -> tuple[str, str, Message]:
    """(source actor, target actor, message) of one envelope; tensor data are views into `frame`.

    Raises:
        MalformedMessage: too long, not msgpack, an unknown kind, an unknown or wrongly typed field.
    """
    return decode_traced(frame, num_bytes_max=num_bytes_max)[:3]


def decode_traced(
    frame: bytes | bytearray | memoryview, *, num_bytes_max: int = MESSAGE_BYTES_MAX
) -> tuple[str, str, Message, str]:
    """The same, with what the sender says of its trace: any text of the length of a traceparent, mostly empty."""
    if len(frame) > num_bytes_max:
        raise MalformedMessage(f"a message of {len(frame)} bytes is over the limit of {num_bytes_max}")
    try:
        envelope = _decoder(_is_compact(frame)).decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(str(error)) from None
    if max(len(envelope.source_actor), len(envelope.target_actor)) > ACTOR_NAME_LENGTH_MAX:
        raise MalformedMessage(f"an actor name is over {ACTOR_NAME_LENGTH_MAX} characters")
    if len(envelope.traceparent) > TRACEPARENT_LENGTH_MAX:
        raise MalformedMessage(f"a traceparent is over {TRACEPARENT_LENGTH_MAX} characters")
    return envelope.source_actor, envelope.target_actor, envelope.message, envelope.traceparent


def _is_compact(frame: bytes | bytearray | memoryview) -> bool:
    """Whether the message in an envelope is an array: msgspec has no union of structs as arrays and structs as maps."""
    place = 1
    for _ in range(2):
        if place >= len(frame):
            return False
        head = frame[place]
        if head & ~SHORT_STRING_LENGTH_MASK == SHORT_STRING:
            place += 1 + (head & SHORT_STRING_LENGTH_MASK)
        elif head == STRING_OF_ONE_LENGTH_BYTE and place + 1 < len(frame):
            place += 2 + frame[place + 1]
        else:
            return False
    return place < len(frame) and frame[place] & ARRAY_MASK == SHORT_ARRAY


def kind(message: object) -> str:
    """Name under which traffic of this message is counted."""
    return type(message).__name__
