"""One byte per measurement: a sign and a 7-bit logarithm of the magnitude, and the integer it is worth in a round.

    byte        bit 7: sign; bits 0-6: code c, magnitude 2^(lowest + c / 8), and code 0 is nothing at all
    reference   the median code of the committed round before: half of all entries must lie before it does
    coefficient 32 * 2^((c - reference) / 8), rounded and clipped: at most 127

So the step that a round makes does not depend on the scale of the loss, and no entry is worth more than four medians.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

STEPS_PER_OCTAVE = 8
CODE_MAX = 127
SIGN_BIT = 128
COEFFICIENT_UNIT = 32
"""What an entry at the reference is worth."""
COEFFICIENT_MAX = 127
SIZE_UNIT = 38
"""The mean size of coefficients whose median is 32, if they are normal."""
REFERENCE_DROP_MAX = 32
"""By how much a reference falls at most after one round: a code less far below it is still worth something."""


def encode_projections(projections: Sequence[float], exponent_min: int) -> bytes:
    """One byte for each projection; too small is 0, too large the largest magnitude.

    `exponent_min`: the logarithm (base 2) below the smallest magnitude; 16 octaves above it can be told apart.

    Raises:
        ValueError: a projection is not a number.
    """
    if any(math.isnan(value) for value in projections):
        raise ValueError("a measured loss is not a number: use another type of numbers, or a smaller learning rate")
    return bytes(_encode(value, exponent_min) for value in projections)


def _encode(value: float, exponent_min: int) -> int:
    if value == 0.0:
        return 0
    sign = SIGN_BIT if value < 0 else 0
    if math.isinf(value):
        return sign | CODE_MAX
    code = round((math.log2(abs(value)) - exponent_min) * STEPS_PER_OCTAVE)
    return 0 if code < 1 else sign | min(code, CODE_MAX)


def decode_projections(codes: bytes, exponent_min: int) -> list[float]:
    """The projections that the bytes stand for, each within 1/16 octave (4.5 %) of what was encoded."""
    return [
        0.0
        if byte & CODE_MAX == 0
        else math.copysign(2.0 ** (exponent_min + (byte & CODE_MAX) / STEPS_PER_OCTAVE), -(byte & SIGN_BIT) or 1)
        for byte in codes
    ]


def median_code(codes: bytes) -> int | None:
    """The lower median of the codes that are not 0, or None where there are none."""
    found = sorted(byte & CODE_MAX for byte in codes if byte & CODE_MAX)
    return found[(len(found) - 1) // 2] if found else None


def coefficients(codes: bytes, reference: int, coefficient_max: int = COEFFICIENT_MAX) -> np.ndarray:
    """What each byte is worth, int32 [len(codes)], in [-coefficient_max, coefficient_max]."""
    table = _table(reference)
    magnitudes = np.minimum(table[np.frombuffer(codes, dtype=np.uint8) & CODE_MAX], coefficient_max)
    return np.where(np.frombuffer(codes, dtype=np.uint8) & SIGN_BIT, -magnitudes, magnitudes).astype(np.int32)


def moved_reference(reference: int, size: int, num_members: int) -> int:
    """The next reference where only sums are known; `size` is the sum of the members' mean sizes of a coefficient."""
    if size <= 0:
        return max(1, reference - REFERENCE_DROP_MAX)
    # The largest n with size / members >= 38 * 2^(n / 8), by integer comparison of eighth powers.
    found, aim = size**STEPS_PER_OCTAVE, (SIZE_UNIT * num_members) ** STEPS_PER_OCTAVE
    steps = next(n for n in range(CODE_MAX, -CODE_MAX, -1) if found << max(-n, 0) >= aim << max(n, 0))
    return min(CODE_MAX, max(1, reference + max(steps, -REFERENCE_DROP_MAX)))


@functools.lru_cache(maxsize=CODE_MAX + 1)
def _table(reference: int) -> np.ndarray:
    return np.array([0, *(_magnitude(code - reference) for code in range(1, CODE_MAX + 1))], dtype=np.int32)


def _magnitude(steps: int) -> int:
    """32 * 2^(steps / 8) rounded, by integer comparison of eighth powers, and clipped to 127."""
    # n - 1/2 <= 32 * 2^(steps / 8)  <=>  (2n - 1)^8 <= 64^8 * 2^steps; never equal unless steps % 8 is 0.
    limit, scale = (2 * COEFFICIENT_UNIT) ** STEPS_PER_OCTAVE << max(steps, 0), 1 << max(-steps, 0)
    return max(
        (n for n in range(1, COEFFICIENT_MAX + 1) if (2 * n - 1) ** STEPS_PER_OCTAVE * scale <= limit), default=0
    )
