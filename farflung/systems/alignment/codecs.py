"""One run of values of a tensor as few bytes, exactly: dense, by what changed, or as bits that differ.

The smallest is taken, by measuring all.

| codec   | what travels                                                     | smallest when                       |
|---------|------------------------------------------------------------------|-------------------------------------|
| raw     | the values                                                       | nothing helps                       |
| planes  | the values, all first bytes, all second ones ..., in zstd        | there is no base, or all changed    |
| xor     | new XOR old, in planes, in zstd                                  | much changed, each a little         |
| sparse  | where something changed (gaps) and the new values, in zstd       | little changed, to anything         |
| bits    | where something changed (gaps) and new XOR old there, in zstd    | little changed, each a little       |

All are exact for every dtype: they see words of bits. The new values never depend on arithmetic with the old ones, so
that a chain of any length rebuilds the same bits, and a change that is taken back gives the bytes that it gave before.
"""

from collections.abc import Callable

import msgspec
import numpy as np
import torch
import zstandard

from farflung.wire.tensor import MalformedTensor

Words = np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]
"""[length] values as unsigned integers of their size."""

LEVEL = 5
"""Of zstd: higher ones take several times as long for some percent."""
SPARSE_SHARE_MAX = 0.5
"""Where more has changed, naming the places cannot pay."""
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
GAP = 255
"""This byte says: so many places on, and more to come."""


class Encoded(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A run of values on the wire."""

    codec: str
    data: bytes


class _Sparse(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    num_changed: int
    num_gap_bytes: int
    gaps: bytes
    values: bytes


def words_of(tensor: torch.Tensor) -> Words:
    """[length] the values of a contiguous tensor on the processor, as bits; the tensor's own memory."""
    flat = tensor.detach().reshape(-1)
    return flat.view(torch.uint8).numpy().view(WORDS[flat.element_size()])


def encode_words(new: Words, old: Words | None) -> Encoded | None:
    """The smallest encoding that is exact; None: nothing changed, so nothing needs to travel. [length] each."""
    found = [Encoded("raw", new.tobytes()), Encoded("planes", _pack(new))]
    if old is not None:
        places = np.flatnonzero(new != old)
        if not len(places):
            return None
        found.append(Encoded("xor", _pack(new ^ old)))
        if len(places) <= SPARSE_SHARE_MAX * len(new):
            found.append(Encoded("sparse", _encode_sparse(places, new[places])))
            found.append(Encoded("bits", _encode_sparse(places, new[places] ^ old[places])))
    return min(found, key=lambda encoded: len(encoded.data))


def decode_words(encoded: Encoded, words: Words) -> None:
    """Turn the old values in `words` (anything, if there was no base) into the new ones, in place.

    Raises:
        MalformedTensor: bytes that no encoder wrote for so many values of this size.
    """
    decode = _DECODERS.get(encoded.codec)
    if decode is None:
        raise MalformedTensor(f"there is no codec {encoded.codec[:20]!r} of weights")
    try:
        decode(encoded.data, words)
    except (msgspec.MsgspecError, zstandard.ZstdError, ValueError, IndexError) as error:
        raise MalformedTensor(f"weights cannot be read ({encoded.codec}): {error}") from None


def _decode_raw(data: bytes, words: Words) -> None:
    if len(data) != words.nbytes:
        raise ValueError(f"{len(data)} bytes where {words.nbytes} were expected")
    words[:] = np.frombuffer(data, words.dtype)


def _decode_planes(data: bytes, words: Words) -> None:
    words[:] = _unpack(data, len(words), words.dtype)


def _decode_xor(data: bytes, words: Words) -> None:
    words ^= _unpack(data, len(words), words.dtype)


def _decode_sparse(data: bytes, words: Words) -> None:
    places, values = _read_sparse(data, words)
    words[places] = values


def _decode_bits(data: bytes, words: Words) -> None:
    places, values = _read_sparse(data, words)
    words[places] ^= values


_DECODERS: dict[str, Callable[[bytes, Words], None]] = {
    "raw": _decode_raw,
    "planes": _decode_planes,
    "xor": _decode_xor,
    "sparse": _decode_sparse,
    "bits": _decode_bits,
}


def _pack(words: Words) -> bytes:
    """In planes: bytes of one significance together are far more alike than neighbours."""
    planes = words.view(np.uint8).reshape(-1, words.itemsize).T
    return zstandard.ZstdCompressor(level=LEVEL).compress(np.ascontiguousarray(planes).data)


def _unpack(data: bytes, length: int, dtype: np.dtype[np.unsignedinteger]) -> Words:
    planes = np.frombuffer(_decompress(data, length * dtype.itemsize), np.uint8).reshape(dtype.itemsize, length)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)


def _encode_sparse(places: np.ndarray[tuple[int], np.dtype[np.intp]], values: Words) -> bytes:
    gaps = np.diff(places, prepend=-1) - 1
    # A gap g is g // 255 bytes of 255 and one of g % 255.
    bytes_each = gaps // GAP + 1
    coded = np.full(int(bytes_each.sum()), GAP, np.uint8)
    coded[np.cumsum(bytes_each) - 1] = gaps % GAP
    packed = zstandard.ZstdCompressor(level=LEVEL).compress(coded.data)
    return msgspec.msgpack.encode(_Sparse(len(places), len(coded), packed, _pack(values)))


def _read_sparse(data: bytes, words: Words) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], Words]:
    sparse = msgspec.msgpack.decode(data, type=_Sparse)
    if not (0 < sparse.num_changed <= len(words) and 0 < sparse.num_gap_bytes <= len(words)):
        raise ValueError("more places than there are values")
    coded = np.frombuffer(_decompress(sparse.gaps, sparse.num_gap_bytes), np.uint8)
    ends = np.flatnonzero(coded != GAP)
    if len(ends) != sparse.num_changed:
        raise ValueError("another number of places than of values")
    places = np.cumsum(coded, dtype=np.intp)[ends] + np.arange(len(ends))
    if places[-1] >= len(words):
        raise ValueError("a place past the end")
    return places, _unpack(sparse.values, sparse.num_changed, words.dtype)


def _decompress(data: bytes, num_bytes: int) -> bytes:
    if zstandard.frame_content_size(data) != num_bytes:
        raise ValueError(f"it does not hold {num_bytes} bytes")
    return zstandard.ZstdDecompressor().decompress(data)
