"""What a run says about private data: everybody measures the same slots, and how their answers become one."""

from typing import Literal

import msgspec

MEANS = ("mean", "trimmed")
MASKED_PARTICIPANTS_MIN = 3
"""Of a masked sum: of two, each knows the other's entries."""
PARTICIPANTS_MAX = 256
"""Of a masked sum: so many coefficients of at most 127 add up to 15 bits and a sign."""
GRID_BITS = 16
"""A clipped difference of a loss is an integer of so many bits and a sign."""


class Privacy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Differential privacy of every single example, by noise that each participant adds to what it measures."""

    clip: float
    """C: an example's difference of losses counts at most so much, to either side."""
    noise_multiplier: float
    """Standard deviation of the noise on the sum over a batch, in units of C."""

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1e6:
            raise ValueError(f"clip is {self.clip:g}; it must be above 0: a tenth of a usual difference of losses, say")
        if not 1e-2 <= self.noise_multiplier <= 1e6:
            raise ValueError(f"noise_multiplier is {self.noise_multiplier:g}; it must be between 0.01 and 1,000,000")


class SharedSlots(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each participant measures all slots of a round on its own data; a slot's coefficient is a mean over them."""

    mean: Literal["mean", "trimmed"] = "mean"
    """Over the participants of a slot: of all, or without the largest and smallest."""
    trim_percent: int = 25
    """Trimmed: the share of participants, rounded down, that is left out at either end."""
    participants_min: int = 1
    """A slot that fewer have measured adds nothing."""
    is_masked: bool = False
    """Entries travel under masks that cancel in the sum, which is all that anybody sees."""
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        if self.mean == "trimmed" and not 1 <= self.trim_percent <= 49:
            raise ValueError(f"trim_percent is {self.trim_percent}; at either end 1 to 49 percent can be left out")
        if self.participants_min < 1:
            raise ValueError(f"participants_min is {self.participants_min}; it must be at least 1")
        if self.is_masked and self.mean != "mean":
            raise ValueError(
                "a trimmed mean compares single entries, and masks hide them: choose mean = 'mean', or no masks"
            )
        if self.is_masked and not MASKED_PARTICIPANTS_MIN <= self.participants_min <= PARTICIPANTS_MAX:
            raise ValueError(
                f"participants_min is {self.participants_min}; masks need {MASKED_PARTICIPANTS_MIN} to "
                f"{PARTICIPANTS_MAX} participants, as of two each would know the other's entries"
            )

    @property
    def trimmed_percent(self) -> int:
        """What is left out at either end."""
        return self.trim_percent if self.mean == "trimmed" else 0
