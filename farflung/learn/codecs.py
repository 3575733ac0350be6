"""Which codecs there are for what travels in training, and what follows from one; read without torch."""

from collections.abc import Iterable

CODECS = ("raw", "bf16", "int8", "int4", "int2")
"""From the most exact to the smallest. fp16 is not among them: small deltas underflow in it."""
_SECOND_MOMENTS = {"raw": "raw", "fp16": "bf16", "bf16": "bf16", "int8": "log8", "int4": "log4", "int2": "log4"}
SIGNED_CODECS = tuple(_SECOND_MOMENTS)
"""Codecs of values that may be negative, as parameters, their changes and first moments are."""


def coarsest(codecs: Iterable[str]) -> str:
    """The one of these that keeps the least; raises ValueError if there are none."""
    return max(codecs, key=CODECS.index)


def second_moment_codec(codec: str) -> str:
    """The codec that does to second moments what `codec` does to parameters: no small value becomes zero.

    Adam divides by the root of the second moment, so that its small values matter in proportion. Evenly spaced levels
    lose them, also of the root; logarithmic ones of the same width keep each within a stated factor. Two bits are too
    few: "int2" gives "log4". Use it without error feedback, whose sums may be negative.

    Raises:
        ValueError: an unknown codec.
    """
    if codec not in _SECOND_MOMENTS:
        raise ValueError(f"there is no codec of second moments for {codec!r}; choose from {', '.join(_SECOND_MOMENTS)}")
    return _SECOND_MOMENTS[codec]
