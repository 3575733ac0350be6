"""What a measurer is to measure, and what it has measured and may have to send again (pure)."""

from collections.abc import Sequence

from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.messages import ByteEntries
from farflung.systems.onebyte.packing import bounded, pack
from farflung.systems.onebyte.records import Part
from farflung.systems.onebyte.slots import runs
from farflung.wire.identity import Signed


class Measurements:
    """Of one life of one measurer."""

    def __init__(self, header: Header, entries_per_message: int) -> None:
        self.num_measured = 0
        self._header = header
        self._entries_per_message = entries_per_message
        self._queue: list[tuple[int, int]] = []
        # First slot and number of each run of the open round that is to be measured.
        self._under_way = range(0)
        self._codes: dict[int, dict[int, int]] = {}
        # By round and slot, as long as it may be sent.

    @property
    def mask_key(self) -> Signed | None:
        """Nothing is masked."""
        return None

    @property
    def is_idle(self) -> bool:
        """Nothing is to be measured."""
        return not self._queue

    def begin_round(self, number: int) -> None:
        """What is left of an older round's slots is left to others, and what is too old to count is forgotten."""
        self._queue = []
        oldest = number - self._header.staleness_rounds_max
        self._codes = {base: codes for base, codes in self._codes.items() if base >= oldest}

    def ask(self, ledger: Ledger, slots: Sequence[int]) -> list[ByteEntries]:
        """Slots of the open round (first, number, ...): what is new is queued, what was measured is sent again."""
        number = ledger.num_rounds
        measured = self._codes.get(number, {})
        known = {slot for first, count in self._queue for slot in range(first, first + count)} | {*self._under_way}
        pairs = zip(slots[::2], slots[1::2], strict=True)
        asked = [slot for first, count in pairs for slot in range(first, first + count)]
        new = runs([slot for slot in asked if slot not in measured and slot not in known])
        self._queue += zip(new[::2], new[1::2], strict=True)
        return self._messages(number, [slot for slot in asked if slot in measured], ledger)

    def next(self) -> range | None:
        """The next slots to measure, a message's worth; None while some are being measured, or none are left."""
        if self._under_way or not self._queue:
            return None
        first, count = self._queue.pop(0)
        size = min(count, self._entries_per_message)
        if count > size:
            self._queue.insert(0, (first + size, count - size))
        self._under_way = range(first, first + size)
        return self._under_way

    def done(self, base_round: int, slots: range, codes: bytes, ledger: Ledger) -> list[ByteEntries]:
        """Slots of `base_round` are measured; the journal may have gone on meanwhile."""
        assert len(codes) == len(slots), "a byte for each slot"
        self._under_way = range(0)
        self.num_measured += len(codes)
        reference = ledger.reference_of(base_round)
        if reference is None:
            return []
        self._codes.setdefault(base_round, {}).update(zip(slots, bounded(codes, reference), strict=True))
        return self._messages(base_round, slots, ledger)

    def uncounted(self, ledger: Ledger, own: int | None) -> list[ByteEntries]:
        """What has been measured and does not stand in the journal, where this participant has the number `own`."""
        found: list[ByteEntries] = []
        for base_round, codes in self._codes.items():
            counted = ledger.measured(base_round, own)
            found += self._messages(base_round, [slot for slot in codes if slot not in counted], ledger)
        return found

    def num_own(self, part: Part) -> int:
        """How many of these entries this life has measured."""
        mine = self._codes.get(part.base_round, {})
        return sum(mine.get(slot) == code for slot, code in enumerate(part.codes, start=part.first_slot))

    def num_entries(self, part: Part) -> int:
        """How many there are."""
        return len(part.codes)

    def _messages(self, base_round: int, slots: Sequence[int], ledger: Ledger) -> list[ByteEntries]:
        """Consecutive slots together; nothing that is too old to be taken."""
        reference = ledger.reference_of(base_round)
        if reference is None:
            return []
        codes, flat, size = self._codes.get(base_round, {}), runs(slots), self._entries_per_message
        found: list[ByteEntries] = []
        for first, count in zip(flat[::2], flat[1::2], strict=True):
            for start in range(first, first + count, size):
                stretch = bytes(codes[slot] for slot in range(start, min(start + size, first + count)))
                place = base_round * self._header.num_slots + start
                found.append(ByteEntries(place=place, codes=pack(stretch, reference)))
        return found
