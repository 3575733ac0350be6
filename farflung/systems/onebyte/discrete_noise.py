"""Normal noise as integers, exactly: the discrete Gaussian of Canonne, Kamath and Steinke (arXiv 2004.00010).

P(n) is proportional to exp(-n^2 / (2 sigma^2)). Everything is decided by comparing integers that are drawn uniformly,
so that no rounding of floating-point numbers makes some values impossible, which would tell what the noise is to hide.
"""

from collections.abc import Callable
from fractions import Fraction

Draw = Callable[[int], int]
"""A secret random integer below n, all alike likely: `secrets.randbelow`."""


def discrete_gaussian(sigma: Fraction, draw: Draw) -> int:
    """One value (algorithm 3 there). `sigma` > 0."""
    scale = sigma.numerator // sigma.denominator + 1
    while True:
        value = _discrete_laplace(scale, draw)
        distance = abs(value) - sigma * sigma / scale
        if _happens_exp(distance * distance / (2 * sigma * sigma), draw):
            return value


def _discrete_laplace(scale: int, draw: Draw) -> int:
    """P(n) proportional to exp(-|n| / scale), for an integer scale (algorithm 2 there)."""
    while True:
        part = draw(scale)
        if not _happens_exp(Fraction(part, scale), draw):
            continue
        whole = 0
        while _happens_exp(Fraction(1), draw):
            whole += 1
        size = part + scale * whole
        is_negative = bool(draw(2))
        if size or not is_negative:
            return -size if is_negative else size


def _happens_exp(rate: Fraction, draw: Draw) -> bool:
    """True with probability exp(-rate), for rate >= 0 (algorithm 1 there)."""
    while rate > 1:
        if not _happens_exp(Fraction(1), draw):
            return False
        rate -= 1
    count = 1
    # The first k at which an event of probability rate / k fails is odd with probability exp(-rate).
    while draw(rate.denominator * count) < rate.numerator:
        count += 1
    return count % 2 == 1
