"""Large messages without an extra copy: small things encoded, large buffers left where they are, in order.

A message of tens of megabytes that is first encoded as a whole and then cut into parts is copied twice; memory that was
just handed out costs as much again. `encode_pieces` gives what to cut the parts from.
"""

import os
from collections.abc import Sequence
from typing import cast

import msgspec

from farflung.wire.message import Message, encode

LARGE_BYTES = 256 << 10
"""Buffers from this size on are pieces of their own."""

# Stands for a buffer while the rest is encoded. Random, so that no peer can make us take its bytes for one.
_MARK = os.urandom(24)
_PLAIN = frozenset({int, str, float, bool, type(None)})
_BUFFERS = frozenset({bytes, bytearray, memoryview})


def encode_pieces(
    source_actor: str, target_actor: str, message: Message, traceparent: str = ""
) -> list[bytes | memoryview]:
    """Buffers that, one after another, are what `message.encode` gives.

    The large ones are views into the message: use them before its tensors change.
    """
    if not _is_heavy(message):
        return [encode(source_actor, target_actor, message, traceparent)]
    views: list[memoryview] = []
    light = _lightened(message, views)
    first, *rest = encode(source_actor, target_actor, cast(Message, light), traceparent).split(_MARK)
    pieces: list[bytes | memoryview] = [first]
    for view, after in zip(views, rest, strict=True):
        pieces += [_header(len(view)), view, after]
    return pieces


def _is_heavy(value: object) -> bool:
    """Whether there is a large buffer in `value`. Every message passes here, hence by exact type, commonest first."""
    kind = type(value)
    if kind in _PLAIN:
        return False
    if kind in _BUFFERS:
        return memoryview(cast(bytes, value)).nbytes >= LARGE_BYTES
    if isinstance(value, msgspec.Struct):
        return any(map(_is_heavy, msgspec.structs.astuple(value)))
    if kind is tuple or kind is list:
        items = cast(Sequence[object], value)
        return bool(items) and _may_hold_buffers(items[0]) and any(map(_is_heavy, items))
    if kind is dict:
        return any(map(_is_heavy, cast(dict[object, object], value).values()))
    return False


def _lightened(value: object, views: list[memoryview]) -> object:
    """`value` with every large buffer replaced by the mark, and those in `views`; itself if it has none."""
    if type(value) in _BUFFERS:
        view = memoryview(cast(bytes, value))
        if view.nbytes < LARGE_BYTES:
            return value
        views.append(view.cast("B"))
        return msgspec.Raw(_MARK)
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        changes = {name: new for name, old in fields.items() if (new := _lightened(old, views)) is not old}
        return msgspec.structs.replace(value, **changes) if changes else value
    if isinstance(value, tuple | list):
        items = cast(Sequence[object], value)
        return [_lightened(item, views) for item in items] if items and _may_hold_buffers(items[0]) else items
    if isinstance(value, dict):
        table = cast(dict[object, object], value)
        if table and _may_hold_buffers(next(iter(table.values()))):
            return {key: _lightened(item, views) for key, item in table.items()}
        return table
    return value


def _may_hold_buffers(item: object) -> bool:
    return item is None or type(item) not in _PLAIN


def _header(num_bytes: int) -> bytes:
    """What msgpack writes before `num_bytes` bytes of binary data, for lengths past 65,535."""
    return b"\xc6" + num_bytes.to_bytes(4, "big")
