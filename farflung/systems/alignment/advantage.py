"""Advantages of a group's answers to one prompt, also when members are missing, and what their absence does.

The baseline is the mean over those that came. A group whose rewards are all equal teaches nothing and is left out
altogether: from the loss, from every penalty, and from the denominator. Equality is exact, since a standard deviation
of equal numbers need not come out as 0. One answer alone has no baseline.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SCALE_MIN = 1e-6
"""Added to the standard deviation that divides."""

Verdict = Literal["used", "equal rewards", "alone"]


@dataclass(frozen=True, slots=True)
class GroupAdvantages:
    """One advantage per member, in order, and whether the group is used."""

    values: tuple[float, ...]
    verdict: Verdict

    @property
    def is_used(self) -> bool:
        return self.verdict == "used"


def group_advantages(rewards: Sequence[float], *, is_scaled: bool = False) -> GroupAdvantages:
    """r - mean over those that came; `is_scaled` divides by their standard deviation (GRPO, not Dr.GRPO).

    Raises:
        ValueError: a reward is not a finite number.
    """
    if not all(math.isfinite(reward) for reward in rewards):
        raise ValueError(f"rewards must be finite numbers, and these are {list(rewards)}: mend the reward function")
    nothing = (0.0,) * len(rewards)
    if len(rewards) < 2:
        return GroupAdvantages(nothing, "alone")
    if all(reward == rewards[0] for reward in rewards):
        return GroupAdvantages(nothing, "equal rewards")
    mean = math.fsum(rewards) / len(rewards)
    differences = [reward - mean for reward in rewards]
    if is_scaled:
        deviation = math.sqrt(math.fsum(value * value for value in differences) / (len(rewards) - 1))
        differences = [value / (deviation + SCALE_MIN) for value in differences]
    return GroupAdvantages(tuple(differences), "used")


class SurvivorMeter:
    """How much shorter the answers of incomplete groups are than those of complete ones.

    Who drops what comes late drops long answers first. As long as members are lost at random, whatever the length, the
    ratio stays near 1; where it is well below, raise the deadline.
    """

    def __init__(self) -> None:
        self.num_groups = 0
        self.num_incomplete = 0
        self.num_lost = 0
        self._complete = [0, 0]
        self._incomplete = [0, 0]

    def add(self, lengths: Sequence[int], group_size: int) -> None:
        """Count a group of `group_size` of which members with these `lengths` (tokens) came."""
        num_lost = group_size - len(lengths)
        assert num_lost >= 0, "more members came than were asked for"
        self.num_groups += 1
        self.num_incomplete += num_lost > 0
        self.num_lost += num_lost
        counts = self._incomplete if num_lost else self._complete
        counts[0] += sum(lengths)
        counts[1] += len(lengths)

    @property
    def length_ratio(self) -> float:
        """Mean length of survivors over that of members of complete groups; NaN until there are both."""
        (whole, num_whole), (left, num_left) = self._complete, self._incomplete
        return (left / num_left) / (whole / num_whole) if num_left and whole else math.nan

    def state(self) -> dict[str, list[int]]:
        """For a checkpoint."""
        counts = [self.num_groups, self.num_incomplete, self.num_lost]
        return {"counts": counts, "complete": list(self._complete), "incomplete": list(self._incomplete)}

    def load(self, state: dict[str, list[int]]) -> None:
        """Go on from a saved state."""
        self.num_groups, self.num_incomplete, self.num_lost = state["counts"]
        self._complete, self._incomplete = list(state["complete"]), list(state["incomplete"])
