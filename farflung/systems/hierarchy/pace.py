"""How many steps a worker makes between two updates, and how fast it is."""

import math

SPEED_SMOOTHING = 0.3
"""Weight of the newest measurement of a worker's speed."""
ROUNDING = 1e-6
"""Two workers as fast as each other measure slightly different speeds."""


def scaled_steps(num_steps: int, speed: float, speed_max: float) -> int:
    """H_w = max(1, ceil(H speed / greatest speed)) (HALoS, dynamic local updates): all workers take about as long."""
    assert speed_max > 0
    return max(1, math.ceil(num_steps * min(1.0, speed / speed_max) - ROUNDING))


def smoothed_speed(before: float, num_steps: int, seconds: float) -> float:
    """Steps per second after `num_steps` steps took `seconds`; `before`: 0 if this is the first measurement."""
    if seconds <= 0:
        return before
    measured = num_steps / seconds
    return before + SPEED_SMOOTHING * (measured - before) if before else measured
