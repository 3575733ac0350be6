"""What a server writes down: journal records in order, and the state that makes the older ones superfluous."""

import msgspec

from farflung.systems.hierarchy.messages import UpdateHeader

JOURNAL = "hierarchy"


class Granted(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """A client got a lease."""

    number: int
    name: str
    peer: str
    instance: str
    lease: int
    shard: int
    speed: float


class Committed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """An update of a client is here with all its parts, will be acknowledged, and is applied in this order."""

    number: int
    name: str
    lease: int
    sequence: int
    header: UpdateHeader


class Leased(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """The server above gave this one a lease."""

    number: int
    lease: int


class Merged(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """A model of the server above is here with all its parts, and is merged in this order."""

    number: int
    push: int
    """Number of the push that it answers; 0: the first model."""
    num_parts: int
    version: int
    global_steps: int
    speed_max: float
    is_over: bool
    dispatch: int
    """Number under which it was sent."""
    base: int
    """The parts are differences to the model that answered this push; -1: they are the model."""
    codec_push: str
    """Of the push that comes next: written down, so that a restart encodes it alike."""


Record = Granted | Committed | Leased | Merged

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """Bytes for the journal."""
    return _encoder.encode(record)


def decode_record(data: bytes) -> Record:
    """The record; raises msgspec.MsgspecError for what is none."""
    return _decoder.decode(data)
