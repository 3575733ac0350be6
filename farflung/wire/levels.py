"""The blockwise codecs: which levels a block's values are rounded to, and what error that leaves.

Evenly spaced levels, for values of either sign; a code c stands for (c - center) * scale:

| codec | levels / scale  | scale                                           | error                                    |
|-------|-----------------|-------------------------------------------------|------------------------------------------|
| int8  | -127 ... 127    | float32, block maximum / 127                    | maximum / 254                            |
| int4  | -8 ... 7        | bfloat16, the block's extreme value / -8, so    | maximum / 15; maximum / 7.7 where x is   |
|       |                 | either end may be the one with more levels      | within 1/15 of minus the extreme value   |
| int2  | -1.5 -.5 .5 1.5 | bfloat16, root mean square of the block         | at most .96 of the block's norm          |

"Maximum" is the largest magnitude of the block. Each bound has a floor of 1e-36, where scales underflow. bfloat16
scales keep the range of float32: deltas of 1e-8 would underflow in float16.

int2 rotates whole blocks before it rounds them, by an orthogonal matrix of +-1/8 (Hadamard's, with some rows negated):
few levels suit evenly spread values, and a rotation spreads outliers. Errors are .34 of the norm for normal values, and
no more for heavy tails, where without rotation they are .7 and error feedback (`learn.feedback`) comes with delays that
upset outer momentum. The bound of .96 is met by a block that the rotation turns into a single value; since it is below
1, error feedback converges. Sums of at most 64 half-integers are exact, so that decoding is the same everywhere.

Evenly spaced logarithms, for values that are not negative and whose small ones matter, such as second moments: the step
of Adam divides by their root, so that one which is rounded to zero moves its weight by thousands of steps. Code 0 is
zero, code c > 0 is 2^(low + (c - 1) * step); low and step are float16.

| codec | error, as a factor of the value, either way                                                  |
|-------|----------------------------------------------------------------------------------------------|
| log8  | 2^(range / 506), at most 1.05, where range is log2 of the block's largest over its smallest  |
| log4  | 2^(range / 27), at most 2.4                                                                  |

Zeros are exact. Values below 2^-32 of the block's maximum, or below 2^-126, are raised to about that.
"""

import math
from collections.abc import Callable

import torch

from farflung.wire.blockwise import BLOCK_LENGTH, BlockCodec

_SCALE_MIN = torch.finfo(torch.float32).tiny
_RANGE_MAX = 32.0
_LOW_STEPS = 8.0
"""`low` is rounded down to eighths, which float16 holds exactly from -256 to 256."""
_ROUND_UP = 1 + 2.0**-10
"""More than what rounding to float16 takes off."""


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


def _even(
    bits: int,
    center: float,
    scale_dtype: torch.dtype,
    fit: Callable[[torch.Tensor, int], torch.Tensor],
    *,
    is_rotated: bool = False,
) -> BlockCodec:
    """A codec with evenly spaced levels; `fit` gives scales [blocks], which a rotation must not change."""
    limit = torch.finfo(scale_dtype).max
    rotation = _rotation() if is_rotated else None

    def quantize(blocks: torch.Tensor, num_values: int) -> tuple[torch.Tensor, torch.Tensor]:
        scales = fit(blocks, num_values)
        _check_finite(scales)
        scales = scales.clamp_(-limit, limit).masked_fill_(scales.abs() < _SCALE_MIN, 0.0).to(scale_dtype)[:, None]
        inverse = scales.to(torch.float32).reciprocal().masked_fill_(scales == 0, 0.0)
        scaled = blocks.mul(inverse)
        if rotation is not None:
            _multiply_whole(scaled, num_values, rotation)
        return scales, scaled.add_(center).round_().clamp_(0, 2**bits - 1)

    def restore(scales: torch.Tensor, codes: torch.Tensor, num_values: int) -> torch.Tensor:
        levels = torch.sub(codes, center)
        if rotation is not None:
            _multiply_whole(levels, num_values, rotation.T)
        return levels.mul_(scales)

    return BlockCodec(bits, scale_dtype, 1, quantize, restore)


def _rotation() -> torch.Tensor:
    """Orthogonal [BLOCK_LENGTH, BLOCK_LENGTH] of +-1/8."""
    hadamard = torch.ones(1, 1)
    while len(hadamard) < BLOCK_LENGTH:
        upper, lower = torch.cat((hadamard, hadamard), dim=1), torch.cat((hadamard, -hadamard), dim=1)
        hadamard = torch.cat((upper, lower))
    # Signs without a pattern, or constant blocks would become a single value: bits of the golden ratio.
    signs = torch.tensor([1.0 - 2.0 * (0x9E3779B97F4A7C15 >> row & 1) for row in range(BLOCK_LENGTH)])
    return hadamard * signs[:, None] / math.sqrt(BLOCK_LENGTH)


def _multiply_whole(blocks: torch.Tensor, num_values: int, matrix: torch.Tensor) -> None:
    """Multiply the blocks that hold no padding, in place; a part of a rotated block could not be left out."""
    whole = blocks[: num_values // BLOCK_LENGTH]
    whole.copy_(whole @ matrix)


def _logarithmic(bits: int) -> BlockCodec:
    code_max = 2**bits - 1

    def quantize(blocks: torch.Tensor, num_values: int) -> tuple[torch.Tensor, torch.Tensor]:
        _check_finite(blocks.amax(dim=1))
        if blocks.amin() < 0:
            raise ValueError("logarithmic codecs hold no negative values; use int8 or int4")
        # Zeros, padding among them, have a code of their own and do not widen the range.
        is_zero = blocks == 0
        logarithms = blocks.clamp_min(_SCALE_MIN).log2_()
        high = logarithms.amax(dim=1, keepdim=True)
        low = logarithms.masked_fill(is_zero, torch.inf).amin(dim=1, keepdim=True)
        low = torch.maximum(torch.minimum(low, high), high - _RANGE_MAX).mul_(_LOW_STEPS).floor_().div_(_LOW_STEPS)
        scales = torch.cat((low, (high - low).mul_(_ROUND_UP / (code_max - 1))), dim=1).to(torch.float16)
        low, step = _columns(scales.to(torch.float32))
        inverse = step.reciprocal().masked_fill_(step == 0, 0.0)
        codes = logarithms.sub_(low).mul_(inverse).add_(1).round_().clamp_(1, code_max)
        return scales, codes.masked_fill_(is_zero, 0.0)

    def restore(scales: torch.Tensor, codes: torch.Tensor, num_values: int) -> torch.Tensor:
        low, step = _columns(scales)
        return _power_of_two(torch.sub(codes, 1.0).mul_(step).add_(low)).mul_(codes.clamp_max(1))

    return BlockCodec(bits, torch.float16, 2, quantize, restore)


def _power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """2^x for -126 <= x < 128, which it overwrites, to a share of 1.1e-4: sums and products alone, which every machine
    rounds alike; `exp2` differs between processors."""
    whole = exponents.clamp_(-126.0, 127.99).floor()
    rest = exponents.sub_(whole)
    powers = whole.to(torch.int32).add_(127).bitwise_left_shift_(23).view(torch.float32)
    polynomial = torch.full_like(rest, 0.07810002)
    for coefficient in (0.22606716, 0.69583282, 1.0):
        polynomial.mul_(rest).add_(coefficient)
    return polynomial.mul_(powers)


def _columns(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return scales[:, :1], scales[:, 1:]


def _check_finite(one_of_each_block: torch.Tensor) -> None:
    # NaN and infinity among the values reach the maxima and norms of their blocks, which are fewer to look at.
    if not one_of_each_block.isfinite().all():
        raise ValueError("blockwise codecs cannot hold infinite values or NaN; use bf16")


BLOCK_CODECS: dict[str, BlockCodec] = {
    "int8": _even(8, 128.0, torch.float32, _fit_maximum),
    "int4": _even(4, 8.0, torch.bfloat16, _fit_extreme),
    "int2": _even(2, 1.5, torch.bfloat16, _fit_mean_square, is_rotated=True),
    "log8": _logarithmic(8),
    "log4": _logarithmic(4),
}
