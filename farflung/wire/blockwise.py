"""The form that all blockwise codecs share: scales of blocks of 64 consecutive values, then packed codes.

    scales (some per block) │ codes, packed from the low bits up; the last byte is filled up as if zeros followed

What the codes mean, and what error they leave, is in `wire.levels`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

BLOCK_LENGTH = 64

# Values worked on at once: passes over them stay in the processor's cache, temporaries stay small. Whole blocks.
_CHUNK_LENGTH = 1 << 18


@dataclass(frozen=True, slots=True)
class BlockCodec:
    """How blocks become codes of `bits` bits (2, 4 or 8) and scales, and back."""

    bits: int
    scale_dtype: torch.dtype
    num_scales: int
    """In each block."""
    quantize: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
    """(scales [blocks, num_scales], codes in floating point) of float32 [blocks, BLOCK_LENGTH] and the number of values
    in them; after those follow zeros, less than a block of them. ValueError: values that the codec cannot hold."""
    restore: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
    """float32 [blocks, BLOCK_LENGTH] of scales (in float32), codes uint8 [blocks, BLOCK_LENGTH] and again the number of
    values. The same bits on every machine, so that all who decode a tensor have the same one."""

    def num_bytes(self, length: int) -> int:
        """Encoded size of `length` values."""
        return self._num_scale_bytes(length) + -(-length * self.bits // 8)

    def encode(self, flat: torch.Tensor) -> torch.Tensor:
        """uint8 [num_bytes] of floating-point [length] on the CPU.

        Raises:
            ValueError: values that the codec cannot hold.
        """
        encoded = torch.empty(self.num_bytes(flat.numel()), dtype=torch.uint8)
        scales, codes = self._parts(encoded, flat.numel())
        for first, last in _chunks(flat.numel()):
            blocks = _padded(flat[first:last].to(torch.float32), BLOCK_LENGTH).view(-1, BLOCK_LENGTH)
            fitted, rounded = self.quantize(blocks, last - first)
            scales[first // BLOCK_LENGTH : -(-last // BLOCK_LENGTH)] = fitted
            packed = _packed(rounded.to(torch.uint8).view(-1), self.bits)
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
            fitted = scales[first // BLOCK_LENGTH : -(-last // BLOCK_LENGTH)].to(torch.float32)
            blocks = self.restore(fitted, unpacked.view(-1, BLOCK_LENGTH), last - first)
            decoded[first:last] = blocks.view(-1)[: last - first].clamp_(-limit, limit)
        return decoded

    def _parts(self, encoded: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        num_scale_bytes = self._num_scale_bytes(length)
        scales = encoded[:num_scale_bytes].view(self.scale_dtype).view(-1, self.num_scales)
        return scales, encoded[num_scale_bytes:]

    def _num_scale_bytes(self, length: int) -> int:
        return -(-length // BLOCK_LENGTH) * self.num_scales * self.scale_dtype.itemsize


def _chunks(length: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + _CHUNK_LENGTH, length)) for first in range(0, length, _CHUNK_LENGTH))


def _padded(flat: torch.Tensor, multiple: int) -> torch.Tensor:
    missing = -flat.numel() % multiple
    return torch.cat((flat, flat.new_zeros(missing))) if missing else flat


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
