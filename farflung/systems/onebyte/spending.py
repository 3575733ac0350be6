"""Participants that may measure no more, as their budgets of privacy are spent, and whether the others are enough."""

from collections.abc import Iterable


class Spending:
    """As one sequencer has heard of it; who follows it as sequencer hears it anew."""

    def __init__(self, participants_min: int) -> None:
        self._participants_min = participants_min
        self._spent: dict[str, None] = {}

    def add(self, key: str) -> None:
        """This participant follows the run to its end and measures no more."""
        self._spent[key] = None

    def forget(self, key: str) -> None:
        """A new life of it will say so again, if it is still so."""
        self._spent.pop(key, None)

    def able(self, keys: Iterable[str]) -> list[str]:
        """Those of these participants that may measure."""
        return [key for key in keys if key not in self._spent]

    def end(self, known: Iterable[str], present: Iterable[str], *, is_late: bool) -> str | None:
        """Why the run cannot go on; None: it can, or could if somebody came back.

        `known`: all who have ever taken part. `is_late`: those of them who are not `present` were waited for.
        """
        if not self._spent:
            return None
        left = len(self.able(present if is_late else dict.fromkeys([*known, *present])))
        if left >= max(1, self._participants_min):
            return None
        return (
            f"the privacy budgets of {len(self._spent)} participants are spent, and {left} are left of the "
            f"{max(1, self._participants_min)} that a round needs"
        )
