"""Gaussian directions as integers: 16 random bits choose one of 65,536 quantiles of the normal distribution.

Samplers of floating-point normals differ in their last bits between machines and releases. A table of quantiles,
rounded to multiples of 1/256, is exact, and its hash is frozen here. Mean 0, variance 1 to 1e-4, largest value 4.3.
"""

import functools
import hashlib
from statistics import NormalDist

import numpy as np
import torch

from farflung.systems.onebyte.header import GAUSSIAN_FRACTION_BITS

TABLE_SIZE = 1 << 16
TABLE_SHA256 = "586fabbefab1ca027691c6b3d5704762521173d6ce9ad1624f04c5fbc16b9968"


@functools.cache
def normal_quantiles() -> torch.Tensor:
    """Integers int16 [65536]: entry i is 256 times the quantile of (i + 1/2) / 65536, rounded."""
    inverse = NormalDist().inv_cdf
    upper = [
        round(inverse((index + 0.5) / TABLE_SIZE) * (1 << GAUSSIAN_FRACTION_BITS)) for index in range(TABLE_SIZE // 2)
    ]
    table = np.array([*upper, *(-value for value in reversed(upper))], dtype="<i2")
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    assert digest == TABLE_SHA256, f"this machine's table of normal quantiles is another one: {digest}"
    return torch.from_numpy(table.astype(np.int16))


def normals_of(bits: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` pairs of bytes of each row as normals times 256, int16 [rows, count] on their device."""
    pairs = bits[:, : 2 * count].to(torch.int64).view(len(bits), count, 2)
    return normal_quantiles().to(bits.device)[pairs[..., 0] + 256 * pairs[..., 1]]
