"""Who measures which slots of one round: given out in runs, given out again when overdue, counted once (pure).

Invariants: the first measurement of a slot counts and later ones are only compared with it; a slot is accepted from
whoever holds it, or from anybody if nobody does (as after another sequencer took over).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Patience = Callable[[str, int], float]
"""Seconds that a measurer may take for so many slots before others are asked for them."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One byte and who measured it."""

    measurer: str
    code: int


@dataclass(slots=True)
class Slot:
    """One direction of a round."""

    holders: dict[str, float] = field(default_factory=dict[str, float])
    """Who was asked to measure it, and when, in order."""
    measured: list[Measured] = field(default_factory=list[Measured])
    """In order of arrival; the first counts."""
    is_committed: bool = False


class Slots:
    """The slots of one round, as one sequencer knows them."""

    def __init__(self, num_slots: int, committed: Iterable[int] = ()) -> None:
        """`committed`: those that the journal holds already."""
        self._slots = [Slot() for _ in range(num_slots)]
        self.mark_committed(committed)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def num_measured(self) -> int:
        """Slots of which at least one measurement is here or in the journal."""
        return sum(bool(slot.measured) or slot.is_committed for slot in self._slots)

    def is_enough(self, quorum: float) -> str | None:
        """Why what is here closes a round at once."""
        return self._measured_sentence() if self.num_measured >= quorum * len(self) else None

    def is_worth(self) -> str | None:
        """What a round has at its deadline: late entries alone are worth closing it."""
        return f"with {self._measured_sentence()}"

    def _measured_sentence(self) -> str:
        return f"{self.num_measured} of {len(self)} slots measured"

    def measurements(self, slot: int) -> Sequence[Measured]:
        """What is known of one slot."""
        return self._slots[slot].measured

    def holders(self, slot: int) -> list[str]:
        """Who was asked to measure it."""
        return list(self._slots[slot].holders)

    def issue(self, measurer: str, count: int, now: float) -> list[int]:
        """Up to `count` slots that nobody holds are the measurer's now."""
        free = [number for number, slot in enumerate(self._slots) if self._is_free(slot)][: max(count, 0)]
        return self.assign(measurer, free, now)

    def assign(self, measurer: str, numbers: Iterable[int], now: float) -> list[int]:
        """These slots are the measurer's too."""
        given = list(numbers)
        for number in given:
            self._slots[number].holders[measurer] = now
        return given

    def release(self, measurer: str) -> None:
        """The measurer is gone: what it held and has not measured is free."""
        for slot in self._slots:
            slot.holders.pop(measurer, None)

    def forget(self, measurer: str) -> None:
        """Nothing of this measurer counts: its slots that are not committed are free again."""
        self.release(measurer)
        for slot in self._slots:
            slot.measured = [each for each in slot.measured if each.measurer != measurer]

    def owed(self, measurer: str) -> list[int]:
        """Slots that it was asked for and has not sent."""
        return [
            number
            for number, slot in enumerate(self._slots)
            if measurer in slot.holders and not slot.is_committed and not _has(slot, measurer)
        ]

    def overdue(self, measurer: str, now: float, patience: Patience) -> list[int]:
        """Slots that nobody has measured, and that all their holders, of which this is none, have had for too long."""
        num_held = Counter(holder for slot in self._slots for holder in slot.holders)
        before = {holder: now - patience(holder, number) for holder, number in num_held.items()}
        return [
            number
            for number, slot in enumerate(self._slots)
            if slot.holders
            and not slot.measured
            and not slot.is_committed
            and measurer not in slot.holders
            and all(given_at <= before[holder] for holder, given_at in slot.holders.items())
        ]

    def held_by_others(self, measurer: str) -> list[int]:
        """Slots that exactly one other holds or has measured: what an audit can choose from."""
        return [
            number
            for number, slot in enumerate(self._slots)
            if len(slot.holders) == 1 and measurer not in slot.holders and not slot.is_committed
        ]

    def take(self, measurer: str, first: int, codes: bytes) -> list[int]:
        """Measurements arrive; returns the slots that somebody has measured twice now. Repeated ones change nothing."""
        compared: list[int] = []
        for number, code in enumerate(codes, start=first):
            slot = self._slots[number]
            if _has(slot, measurer) or (measurer not in slot.holders and not self._is_open(slot)):
                continue
            slot.measured.append(Measured(measurer, code))
            if len(slot.measured) > 1:
                compared.append(number)
        return compared

    def fresh(self) -> list[tuple[int, Measured]]:
        """What counts and is not in the journal yet, in order of slots."""
        return [
            (number, slot.measured[0])
            for number, slot in enumerate(self._slots)
            if slot.measured and not slot.is_committed
        ]

    def mark_committed(self, numbers: Iterable[int]) -> None:
        """These are in the journal."""
        for number in numbers:
            self._slots[number].is_committed = True

    def _is_free(self, slot: Slot) -> bool:
        return not slot.holders and self._is_open(slot)

    def _is_open(self, slot: Slot) -> bool:
        return not slot.holders and not slot.measured and not slot.is_committed


def _has(slot: Slot, measurer: str) -> bool:
    return any(each.measurer == measurer for each in slot.measured)


def runs(numbers: Sequence[int]) -> tuple[int, ...]:
    """First and number of each run of consecutive numbers, flat: [3, 4, 5, 9] -> (3, 3, 9, 1)."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == sum(found[-1]):
            found[-1][1] += 1
        else:
            found.append([number, 1])
    return tuple(value for run in found for value in run)


def shares(num_slots: int, speeds: Mapping[str, float], slots_min: int) -> dict[str, int]:
    """How many slots each measurer gets: by speed, in steps of `slots_min` where there are enough for all.

    `speeds`: entries per second, 0 where none is known yet (then as much as the mean of the others).
    """
    if not speeds:
        return {}
    known = [speed for speed in speeds.values() if speed > 0]
    mean = sum(known) / len(known) if known else 1.0
    weights = {name: speed if speed > 0 else mean for name, speed in speeds.items()}
    step = max(1, min(slots_min, num_slots // len(speeds)))
    num_steps = -(-num_slots // step)
    total = sum(weights.values())
    exact = {name: num_steps * weight / total for name, weight in weights.items()}
    given = {name: int(share) for name, share in exact.items()}
    order = sorted(exact, key=lambda name: (given[name] - exact[name], list(exact).index(name)))
    for name in order[: num_steps - sum(given.values())]:
        given[name] += 1
    return {name: count * step for name, count in given.items()}
