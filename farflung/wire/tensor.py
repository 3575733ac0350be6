"""Tensors on the wire: a checked header and raw bytes, through a codec with a stated error bound.

| codec  | bytes per value | error of one value x                                            |
|--------|-----------------|-----------------------------------------------------------------|
| raw    | as the dtype    | none                                                            |
| fp16   | 2               | |x| 2^-11 (plus 2^-25 below the normal range), refused past 65504 |
| bf16   | 2               | |x| 2^-8                                                        |
| int8   | 1 + 4/64        | block maximum / 254 (blocks of 64 consecutive values)           |
| int4   | 1/2 + 2/64      | block maximum / 15, and / 7.7 at one end of the range           |
| int2   | 1/4 + 2/64      | .96 of the block's norm over all of it; .34 if it is normal     |
| log8   | 1 + 4/64        | a factor of 1.05; no negative values                            |
| log4   | 1/2 + 4/64      | a factor of 2.4, about 1.2 in practice; no negative values      |

The last five are blockwise; `wire.levels` has their details.

Shape, dtype and size are checked before memory is taken.
"""

import math
from collections.abc import Callable

import msgspec
import torch

from farflung.wire.blockwise import BlockCodec
from farflung.wire.levels import BLOCK_CODECS

NUM_DIMENSIONS_MAX = 8

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class WireTensor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One encoded tensor inside a message."""

    dtype: str
    """What it decodes to."""
    shape: tuple[int, ...]
    codec: str
    data: memoryview


class MalformedTensor(ValueError):
    """A header that does not fit its bytes, or that no codec knows."""


def encode_tensor(tensor: torch.Tensor, codec: str = "raw") -> WireTensor:
    """Encode `tensor` (any device). Lossy codecs take floating-point tensors and decode to the same dtype.

    Raises:
        ValueError: an unknown codec, a dtype that cannot travel, or values that the codec cannot hold.
    """
    if tensor.dtype not in _NAMES:
        raise ValueError(f"tensors of {tensor.dtype} cannot be sent")
    if codec not in _CODECS:
        raise ValueError(f"unknown codec {codec!r}; there are {', '.join(_CODECS)}")
    if codec != "raw" and not tensor.is_floating_point():
        raise ValueError(f"codec {codec} is for floating-point tensors, not {tensor.dtype}")
    data = _CODECS[codec][0](tensor.detach().cpu().contiguous())
    return WireTensor(_NAMES[tensor.dtype], tuple(tensor.shape), codec, data)


def decode_tensor(wire: WireTensor, *, num_bytes_max: int = 1 << 30) -> torch.Tensor:
    """The tensor on the CPU, in memory of its own.

    Raises:
        MalformedTensor: the header and the bytes do not fit, or the tensor is over `num_bytes_max`.
    """
    if wire.dtype not in DTYPES or wire.codec not in _CODECS:
        raise MalformedTensor(f"unknown dtype {wire.dtype[:40]!r} or codec {wire.codec[:40]!r}")
    dtype = DTYPES[wire.dtype]
    if len(wire.shape) > NUM_DIMENSIONS_MAX or any(size < 0 for size in wire.shape):
        raise MalformedTensor(f"impossible shape {wire.shape[:NUM_DIMENSIONS_MAX]}")
    if wire.codec != "raw" and not dtype.is_floating_point:
        raise MalformedTensor(f"codec {wire.codec} with {wire.dtype}")
    length = math.prod(wire.shape)
    if length * dtype.itemsize > num_bytes_max:
        raise MalformedTensor(f"a tensor of {length * dtype.itemsize} bytes is over the limit of {num_bytes_max}")
    _, decode, num_bytes = _CODECS[wire.codec]
    if len(wire.data) != num_bytes(length, dtype):
        raise MalformedTensor(f"{len(wire.data)} bytes for shape {wire.shape} of {wire.dtype} in codec {wire.codec}")
    return decode(wire.data, length, dtype).reshape(wire.shape)


def num_encoded_bytes(codec: str, length: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the data of `length` values in `codec`."""
    return _CODECS[codec][2](length, dtype)


def _bytes_of(flat: torch.Tensor) -> memoryview:
    return flat.reshape(-1).view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _from_bytes(data: memoryview, dtype: torch.dtype) -> torch.Tensor:
    # A copy of its own: frames are read-only and torch would alias them.
    return torch.frombuffer(bytearray(data), dtype=dtype) if len(data) else torch.empty(0, dtype=dtype)


def _encode_raw(tensor: torch.Tensor) -> memoryview:
    return _bytes_of(tensor)


def _decode_raw(data: memoryview, length: int, dtype: torch.dtype) -> torch.Tensor:
    return _from_bytes(data, dtype)


def _encode_fp16(tensor: torch.Tensor) -> memoryview:
    half = tensor.to(torch.float16)
    if not torch.equal(half.isfinite(), tensor.isfinite()):
        raise ValueError("fp16 cannot hold values past 65504; use bf16")
    return _bytes_of(half)


def _encode_bf16(tensor: torch.Tensor) -> memoryview:
    return _bytes_of(tensor.to(torch.bfloat16))


def _decode_fp16(data: memoryview, length: int, dtype: torch.dtype) -> torch.Tensor:
    return _from_bytes(data, torch.float16).to(dtype)


def _decode_bf16(data: memoryview, length: int, dtype: torch.dtype) -> torch.Tensor:
    return _from_bytes(data, torch.bfloat16).to(dtype)


def _num_bytes_raw(length: int, dtype: torch.dtype) -> int:
    return length * dtype.itemsize


def _num_bytes_16(length: int, dtype: torch.dtype) -> int:
    return length * 2


_Codec = tuple[
    Callable[[torch.Tensor], memoryview],
    Callable[[memoryview, int, torch.dtype], torch.Tensor],
    Callable[[int, torch.dtype], int],
]


def _blockwise(codec: BlockCodec) -> _Codec:
    return (
        lambda tensor: _bytes_of(codec.encode(tensor.reshape(-1))),
        lambda data, length, dtype: codec.decode(_from_bytes(data, torch.uint8), length, dtype),
        lambda length, dtype: codec.num_bytes(length),
    )


_CODECS: dict[str, _Codec] = {
    "raw": (_encode_raw, _decode_raw, _num_bytes_raw),
    "fp16": (_encode_fp16, _decode_fp16, _num_bytes_16),
    "bf16": (_encode_bf16, _decode_bf16, _num_bytes_16),
} | {name: _blockwise(codec) for name, codec in BLOCK_CODECS.items()}

CODECS = tuple(_CODECS)
"""Names of all codecs."""
