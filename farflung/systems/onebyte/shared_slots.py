"""Who has measured which shared slots of one round: each participant all of them, on its own data (pure).

Invariants: the first entry of a participant for a slot counts; nobody answers for another, so that nothing is given out
again but to who owes it, and nothing can be compared.
"""

from collections.abc import Iterable, Sequence

from farflung.systems.onebyte.slots import Measured, Patience


class EveryonesSlots:
    """The slots of one round, as one sequencer knows them; the counterpart of `Slots`."""

    def __init__(self, num_slots: int, participants_min: int, committed: Iterable[tuple[str, int]] = ()) -> None:
        """`committed`: (measurer, slot) that the journal holds already."""
        self._num_slots = num_slots
        self._participants_min = participants_min
        self._holders: dict[str, None] = {}
        self._codes: dict[str, dict[int, int]] = {}
        self._committed: dict[str, set[int]] = {}
        self.mark_committed(committed)

    def __len__(self) -> int:
        return self._num_slots

    def is_enough(self, quorum: float) -> str | None:
        """Why what is here closes a round at once."""
        complete = [name for name in self._codes if len(self._known(name)) == self._num_slots]
        num_asked = len(dict.fromkeys([*self._holders, *complete]))
        if len(complete) < max(quorum * num_asked, self._participants_min):
            return None
        return f"{len(complete)} of {num_asked} participants have measured all slots"

    def is_worth(self) -> str | None:
        """Why what is here is worth closing a round at its deadline."""
        num_here = sum(bool(codes) for codes in self._codes.values())
        if num_here < self._participants_min:
            return None
        return f"with entries of {num_here} of {len(self._holders)} participants"

    def issue(self, measurer: str, count: int, now: float) -> list[int]:
        """All slots are the measurer's too; returns those that it owes."""
        self._holders[measurer] = None
        return self.owed(measurer)

    def assign(self, measurer: str, numbers: Iterable[int], now: float) -> list[int]:
        """Nobody measures for another."""
        return []

    def release(self, measurer: str) -> None:
        """The measurer is gone; what it has sent counts."""
        self._holders.pop(measurer, None)

    def forget(self, measurer: str) -> None:
        """Nothing of this measurer counts."""
        self.release(measurer)
        self._codes.pop(measurer, None)

    def owed(self, measurer: str) -> list[int]:
        """Slots that it was asked for and has not sent."""
        known = self._known(measurer)
        return [slot for slot in range(self._num_slots) if slot not in known] if measurer in self._holders else []

    def overdue(self, measurer: str, now: float, patience: Patience) -> list[int]:
        """Nobody measures for another."""
        return []

    def held_by_others(self, measurer: str) -> list[int]:
        """The same."""
        return []

    def holders(self, slot: int) -> list[str]:
        """Who was asked."""
        return list(self._holders)

    def measurements(self, slot: int) -> Sequence[Measured]:
        """What is known of one slot: numbers that differ honestly."""
        return [Measured(name, codes[slot]) for name, codes in self._codes.items() if slot in codes]

    def take(self, measurer: str, first: int, codes: bytes) -> list[int]:
        """Entries arrive, on time or late; nothing of them can be compared. Repeated ones change nothing."""
        known = self._known(measurer)
        mine = self._codes.setdefault(measurer, {})
        mine.update({slot: code for slot, code in enumerate(codes, start=first) if slot not in known})
        return []

    def fresh(self) -> list[tuple[int, Measured]]:
        """What counts and is not in the journal yet, by measurer and slot."""
        return [
            (slot, Measured(name, code))
            for name, codes in self._codes.items()
            for slot, code in sorted(codes.items())
            if slot not in self._committed.get(name, ())
        ]

    def mark_committed(self, entries: Iterable[tuple[str, int]]) -> None:
        """These are in the journal."""
        for name, slot in entries:
            self._committed.setdefault(name, set()).add(slot)

    def _known(self, measurer: str) -> set[int]:
        return {*self._codes.get(measurer, ()), *self._committed.get(measurer, ())}
