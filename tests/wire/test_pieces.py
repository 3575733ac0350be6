"""Pieces of large messages are together what the message encodes to, and copy nothing large."""

from typing import Literal, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farflung.wire.message import Message, decode, encode
from farflung.wire.pieces import LARGE_BYTES, encode_pieces
from farflung.wire.tensor import WireTensor


class WirePieces(Message):
    """Buffers wherever a message may have them."""

    text: str = ""
    tensor: WireTensor | None = None
    tensors: tuple[WireTensor | None, ...] = ()
    named: dict[str, WireTensor] = {}  # noqa: RUF012 (msgspec copies it)
    data: memoryview = memoryview(b"")
    raw: bytes = b""
    nested: tuple[dict[str, list[WireTensor]], ...] = ()
    numbers: tuple[int, ...] = ()


def tensor(size: int) -> WireTensor:
    return WireTensor("uint8", (size,), "raw", memoryview(bytes([size % 251]) * size))


SIZES = st.sampled_from([0, 1, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 3 * LARGE_BYTES])


@given(
    st.text(max_size=5), st.none() | SIZES, st.lists(st.none() | SIZES, max_size=3), st.lists(SIZES, max_size=2), SIZES
)
@settings(max_examples=20)
def test_together_they_are_the_message(
    text: str, one: int | None, some: list[int | None], named: list[int], size: int
) -> None:
    message = WirePieces(
        text=text,
        tensor=None if one is None else tensor(one),
        tensors=tuple(None if size is None else tensor(size) for size in some),
        named={str(index): tensor(size) for index, size in enumerate(named)},
        data=memoryview(bytes(size)),
        raw=bytes(size),
        nested=({"a": [tensor(size) for size in named]}, {}),
        numbers=(1, 2, 3),
    )
    pieces = encode_pieces("source", "target", message)
    whole = encode("source", "target", message)
    assert b"".join(pieces) == whole
    assert decode(whole)[2] == message
    num_large = sum((size or 0) >= LARGE_BYTES for size in [one, *some, *named, *named, size, size])
    assert len(pieces) == 1 + 3 * num_large


def test_large_buffers_are_not_copied() -> None:
    buffer = bytearray(LARGE_BYTES)
    pieces = encode_pieces("a", "b", WirePieces(tensor=WireTensor("uint8", (1,), "raw", memoryview(buffer))))
    buffer[7] = 99
    assert isinstance(pieces[2], memoryview)
    assert pieces[2][7] == 99


@pytest.mark.parametrize("form", ["f", "i", "d"])
def test_buffers_of_other_items_than_bytes_are_taken_as_bytes(form: Literal["f", "i", "d"]) -> None:
    view = memoryview(bytearray(LARGE_BYTES)).cast(form)
    message = WirePieces(data=cast(memoryview, view))
    assert b"".join(encode_pieces("a", "b", message)) == encode("a", "b", message)
