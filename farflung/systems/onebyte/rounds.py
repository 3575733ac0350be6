"""The open round and those before it for which entries may still come: what arrives, when a round closes, and why.

on time     entries of the open round
late        entries of an earlier one that is not too old; they stand in the record of the open round, with the
            round whose directions and weights they were measured with
"""

from collections.abc import Callable
from itertools import groupby

from farflung.systems.onebyte.audits import agree, refuted
from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.records import Part
from farflung.systems.onebyte.shared_slots import EveryonesSlots
from farflung.systems.onebyte.slots import Slots


class Rounds:
    """What one sequencer has gathered and not yet ordered."""

    def __init__(self, config: RoundsConfig, ledger: Ledger, now: float) -> None:
        self._config = config
        self._ledger = ledger
        self._window: dict[int, Slots | EveryonesSlots] = {}
        self._contradicted: dict[int, None] = {}
        """Slots of the open round about which somebody must decide."""
        self.opened_at = now
        self.open(now)

    @property
    def number(self) -> int:
        """Of the open round."""
        return self._ledger.num_rounds

    @property
    def slots(self) -> Slots | EveryonesSlots:
        """Of the open round."""
        return self._window[self.number]

    @property
    def first_number(self) -> int:
        """The oldest round whose entries are still taken."""
        return max(0, self.number - self._ledger.header.staleness_rounds_max)

    def open(self, now: float) -> None:
        """Begin the round after those in the journal."""
        self.opened_at = now
        self._contradicted = {}
        numbers = range(self.first_number, self.number + 1)
        self._window = {number: self._window.get(number) or self._new_slots() for number in numbers}
        for number, slots in self._window.items():
            if isinstance(slots, Slots):
                slots.mark_committed(self._ledger.measured(number))
            else:
                slots.mark_committed(self._ledger.measured_by_each(number))

    def _new_slots(self) -> Slots | EveryonesSlots:
        header = self._ledger.header
        if header.shared_slots is None:
            return Slots(header.num_slots)
        return EveryonesSlots(header.num_slots, header.shared_slots.participants_min)

    def all_slots(self) -> list[Slots | EveryonesSlots]:
        """Of all rounds whose entries are still taken, oldest first."""
        return [self._window[number] for number in sorted(self._window)]

    def release(self, measurer: str) -> None:
        """The measurer is gone; what it has sent counts."""
        for slots in self._window.values():
            slots.release(measurer)

    def take(self, measurer: str, base_round: int, first_slot: int, codes: bytes) -> list[int] | None:
        """Entries arrive; returns the slots that are measured twice now, None if the round is over for good.

        Raises:
            ValueError: there are no such slots.
        """
        if not codes or first_slot + len(codes) > self._ledger.header.num_slots or base_round > self.number:
            raise ValueError(f"entries of round {base_round} from slot {first_slot} on, which there are not")
        if base_round not in self._window:
            return None
        return self._window[base_round].take(measurer, first_slot, codes)

    def suspects(self, base_round: int, slot: int) -> list[str]:
        """Whom the measurements of a slot refute; what cannot be decided yet keeps the open round open."""
        measured = self._window[base_round].measurements(slot)
        reference = self._ledger.reference_for(b"")
        if not reference:
            return []  # nothing is committed yet that says what a large entry is
        found = refuted(measured, reference, self._config.audit_octaves)
        first, octaves = measured[0].code, self._config.audit_octaves
        is_contradicted = any(not agree(first, each.code, reference, octaves) for each in measured[1:])
        if base_round == self.number:
            if is_contradicted and not found and len(measured) == 2:
                self._contradicted[slot] = None
            else:
                self._contradicted.pop(slot, None)
        return found

    def contradicted(self) -> list[int]:
        """Slots of the open round that need a third measurement."""
        return list(self._contradicted)

    def leave_undecided(self, slot: int) -> None:
        """There is nobody to decide."""
        self._contradicted.pop(slot, None)

    def is_due(self, now: float) -> str | None:
        """Why the open round is to be closed now; None: it is not."""
        enough = self.slots.is_enough(self._config.quorum)
        if enough is not None and not self._contradicted:
            return enough
        is_late = now - self.opened_at >= self._config.round_seconds_max
        if is_late and any(slots.fresh() for slots in self._window.values()):
            found = self.slots.is_worth()
            return f"its time is over, {found}" if found is not None else None
        return None

    def contributors(self) -> list[str]:
        """Who measured what will stand in the next record, in the order of its parts."""
        return list(dict.fromkeys(measurer for _, _, measurer, _ in self._entries()))

    def parts(self, number_of: Callable[[str], int]) -> tuple[Part, ...]:
        """All entries that count and are not ordered yet, by round and slot; `number_of` a participant."""
        found: list[Part] = []
        entries = list(enumerate(self._entries()))
        # Consecutive slots of one measurer: their numbers grow as their places in the list do.
        for _, run in groupby(entries, lambda item: (item[1][0], item[1][2], item[1][1] - item[0])):
            group = [entry for _, entry in run]
            base_round, first_slot, measurer, _ = group[0]
            found.append(Part(number_of(measurer), base_round, first_slot, bytes(code for *_, code in group)))
        return tuple(found)

    def _entries(self) -> list[tuple[int, int, str, int]]:
        return [
            (base_round, slot, measured.measurer, measured.code)
            for base_round in sorted(self._window)
            for slot, measured in self._window[base_round].fresh()
        ]
