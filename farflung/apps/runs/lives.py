"""The processes, one after another, that sat on one seat: whether another one may do better (pure)."""

from dataclasses import dataclass

USER_ERROR = 2
QUICK_SECONDS = 10.0
"""A seat that ends this soon after its start, or before it has reported anything, ..."""
QUICK_ENDS_MAX = 3
"""... so many times in a row will not do better the next time."""
FAILURE_SECONDS = 600.0
"""One that fails by itself (not by a signal) within this time, ..."""
FAILURES_MAX = 5
"""... so many times in a row, won't either, even if it works for a while each time."""


@dataclass(slots=True)
class Lives:
    """Of one seat."""

    num_quick_ends: int = 0
    """In a row."""
    num_failures: int = 0
    """In a row."""

    def ended(self, status: int | None, seconds: float, *, has_reported: bool) -> bool:
        """A process has ended after `seconds`; whether the seat cannot go on.

        `status`: as `subprocess` has it, negative for a signal.
        """
        # Status 2 may be a lead that was out of reach for a while, so that too is tried again.
        is_quick = status == USER_ERROR or seconds < QUICK_SECONDS or not has_reported
        self.num_quick_ends = self.num_quick_ends + 1 if is_quick else 0
        is_failure = status is not None and status > 0 and seconds < FAILURE_SECONDS
        self.num_failures = self.num_failures + 1 if is_failure else 0
        return self.num_quick_ends >= QUICK_ENDS_MAX or self.num_failures >= FAILURES_MAX
