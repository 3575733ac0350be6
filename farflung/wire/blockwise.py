"""Blockwise codecs: 64 consecutive values share one scale and are rounded to 2^bits evenly spaced levels.

    scales (one per block) │ codes, packed from the low bits up; the last byte is filled up with what 0 is coded as

A code c stands for (c - center) * scale. How a block's scale is fitted and what error that leaves:

| codec | levels / scale  | scale                                           | error                                    |
|-------|-----------------|-------------------------------------------------|------------------------------------------|
| int8  | -127 ... 127    | float32, block maximum / 127                    | maximum / 254                            |
| int4  | -8 ... 7        | bfloat16, the block's extreme value / -8, so    | maximum / 15; maximum / 7.7 where x is   |
|       |                 | either end may be the one with more levels      | within 1/15 of minus the extreme value   |
| int2  | -1.5 -.5 .5 1.5 | bfloat16, root mean square of the block         | at most .96 of the block's norm          |

"Maximum" is the largest magnitude of the block. Each bound has a floor of 1e-36, where scales underflow. The bound of
int2 is met by a block with a single non-zero value; normally distributed values leave .34 of their norm. Since it is
below 1, error feedback (`learn.feedback`) converges. bfloat16 scales keep the range of float32: second moments of
1e-12 would underflow in float16.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

BLOCK_LENGTH = 64

# Values worked on at once: passes over them stay in the processor's cache, temporaries stay small. Whole blocks.
_CHUNK_LENGTH = 1 << 18
_SCALE_MIN = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class BlockCodec:
    """One row of the table above."""

    bits: int
    center: float
    scale_dtype: torch.dtype
    fit: Callable[[torch.Tensor, int], torch.Tensor]
    """Scales [blocks] of values [blocks, BLOCK_LENGTH], of which those past the given number are padding."""

    def num_bytes(self, length: int) -> int:
        """Encoded size of `length` values."""
        return self._num_scale_bytes(length) + -(-length * self.bits // 8)

    def encode(self, flat: torch.Tensor) -> torch.Tensor:
        """uint8 [num_bytes] of floating-point [length] on the CPU.

        Raises:
            ValueError: NaN or infinite values.
        """
        encoded = torch.empty(self.num_bytes(flat.numel()), dtype=torch.uint8)
        scales, codes = self._parts(encoded, flat.numel())
        for first, last in _chunks(flat.numel()):
            blocks = _padded(flat[first:last].to(torch.float32), BLOCK_LENGTH).view(-1, BLOCK_LENGTH)
            fitted = _in_range(self.fit(blocks, last - first), self.scale_dtype)
            scales[first // BLOCK_LENGTH : -(-last // BLOCK_LENGTH)] = fitted
            rounded = blocks.mul(_inverse(fitted.to(torch.float32))[:, None]).add_(self.center).round_()
            packed = _packed(rounded.clamp_(0, 2**self.bits - 1).to(torch.uint8).view(-1), self.bits)
            begin, end = first * self.bits // 8, -(-last * self.bits // 8)
            codes[begin:end] = packed[: end - begin]
        return encoded

    def decode(self, encoded: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Floating-point [length] of uint8 [num_bytes(length)]; values past the range of `dtype` become its ends."""
        scales, codes = self._parts(encoded, length)
        limit = torch.finfo(dtype).max
        decoded = torch.empty(length, dtype=dtype)
        for first, last in _chunks(length):
            packed = codes[first * self.bits // 8 : -(-last * self.bits // 8)]
            unpacked = _unpacked(_padded(packed, BLOCK_LENGTH * self.bits // 8), self.bits)
            blocks = torch.sub(unpacked, self.center).view(-1, BLOCK_LENGTH)
            blocks *= scales[first // BLOCK_LENGTH : -(-last // BLOCK_LENGTH)].to(torch.float32)[:, None]
            decoded[first:last] = blocks.view(-1)[: last - first].clamp_(-limit, limit)
        return decoded

    def _parts(self, encoded: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        num_scale_bytes = self._num_scale_bytes(length)
        return encoded[:num_scale_bytes].view(self.scale_dtype), encoded[num_scale_bytes:]

    def _num_scale_bytes(self, length: int) -> int:
        return -(-length // BLOCK_LENGTH) * self.scale_dtype.itemsize


def _fit_maximum(blocks: torch.Tensor, num_values: int) -> torch.Tensor:
    return blocks.abs().amax(dim=1) / 127


def _fit_extreme(blocks: torch.Tensor, num_values: int) -> torch.Tensor:
    highest, lowest = blocks.amax(dim=1), blocks.amin(dim=1)
    return torch.where(highest > -lowest, highest, lowest) / -8


def _fit_mean_square(blocks: torch.Tensor, num_values: int) -> torch.Tensor:
    # In double precision: squares of float32 may be too large or too small for float32.
    sums = blocks.to(torch.float64).square_().sum(dim=1)
    counts = torch.full_like(sums, BLOCK_LENGTH)
    counts[-1] -= blocks.numel() - num_values
    return (sums / counts).sqrt_().to(torch.float32)


BLOCK_CODECS: dict[str, BlockCodec] = {
    "int8": BlockCodec(8, 128.0, torch.float32, _fit_maximum),
    "int4": BlockCodec(4, 8.0, torch.bfloat16, _fit_extreme),
    "int2": BlockCodec(2, 1.5, torch.bfloat16, _fit_mean_square),
}


def _chunks(length: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + _CHUNK_LENGTH, length)) for first in range(0, length, _CHUNK_LENGTH))


def _padded(flat: torch.Tensor, multiple: int) -> torch.Tensor:
    missing = -flat.numel() % multiple
    return torch.cat((flat, flat.new_zeros(missing))) if missing else flat


def _in_range(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # NaN and infinity among the values reach the scales of their blocks, which are fewer to look at.
    if not scales.isfinite().all():
        raise ValueError("blockwise codecs cannot hold infinite values or NaN; use bf16")
    limit = torch.finfo(dtype).max
    return scales.clamp_(-limit, limit).masked_fill_(scales.abs() < _SCALE_MIN, 0.0).to(dtype)


def _inverse(scales: torch.Tensor) -> torch.Tensor:
    return scales.reciprocal().masked_fill_(scales == 0, 0.0)


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Neighbouring codes (one per byte, a multiple of 4 of them) shifted together in one wider integer."""
    if bits == 4:
        pairs = codes.view(torch.int16)
        return (pairs | (pairs >> 4)).to(torch.uint8)
    if bits == 2:
        fours = codes.view(torch.int32)
        return (fours | (fours >> 6) | (fours >> 12) | (fours >> 18)).to(torch.uint8)
    return codes


def _unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == 4:
        pairs = packed.to(torch.int16)
        return ((pairs | (pairs << 4)) & 0x0F0F).view(torch.uint8)
    if bits == 2:
        fours = packed.to(torch.int32)
        fours = (fours | (fours << 12)) & 0x000F000F
        return ((fours | (fours << 6)) & 0x03030303).view(torch.uint8)
    return packed
