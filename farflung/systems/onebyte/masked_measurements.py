"""What a measurer of masked entries is to measure, and the one message for it that it may send (pure).

A member measures all slots of a round for one cohort, once, and sends their sum with masks: the coefficients, and their
mean size, from which the next reference is made. What it has sent for a round it sends again, and nothing else: two
sums over different cohorts would tell by their difference what it has measured.
"""

from collections.abc import Sequence

import numpy as np

from farflung.systems.onebyte.code import coefficients
from farflung.systems.onebyte.header import Header, header_hash
from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.masks import COHORT_CHECK_BYTES, MaskKey, cohort_hash, mask_key_of
from farflung.systems.onebyte.measurements import Measurements
from farflung.systems.onebyte.messages import ByteCohort, ByteEntries, ByteMasked
from farflung.systems.onebyte.records import Part
from farflung.wire.identity import Identity, Signed


class MaskedMeasurements:
    """Of one life of one measurer; the counterpart of `Measurements`."""

    def __init__(self, header: Header, entries_per_message: int, key: MaskKey) -> None:
        self.num_measured = 0
        self._header = header
        self._size = entries_per_message
        self._key = key
        self._cohort = b""
        """Its hash."""
        self._others: list[bytes] = []
        """Their mask keys."""
        self._waiting: list[range] = []
        self._under_way = range(0)
        self._codes: dict[int, int] = {}
        self._sent: ByteMasked | None = None
        """For the newest round that anything was sent for."""
        self._took_part: set[int] = set()
        """Rounds."""

    @property
    def mask_key(self) -> Signed | None:
        """What the others of a cohort need of this life."""
        return self._key.signed

    @property
    def is_idle(self) -> bool:
        """Nothing is to be measured."""
        return not self._waiting

    def begin_round(self, number: int) -> None:
        """What was measured for an older round and not sent is of no use any more."""
        self._waiting, self._codes = [], {}

    def ask(self, ledger: Ledger, slots: Sequence[int]) -> list[ByteMasked]:
        """A cohort asks, not the news."""
        return []

    def ask_for(self, message: ByteCohort, ledger: Ledger) -> list[ByteMasked] | None:
        """A cohort is formed for a round; None: it, or what the journal holds before, must be told first.

        Raises:
            ValueError: this participant must have no part in it.
        """
        if message.members:
            self._join(message)
        if message.round_number < ledger.num_rounds:
            return []
        if message.round_number > ledger.num_rounds or self._cohort[:COHORT_CHECK_BYTES] != message.check:
            return None  # something before it was lost
        if message.round_number in self._took_part:
            sent = self._sent
            assert sent is not None
            return [sent] if (sent.round_number, sent.check) == (message.round_number, message.check) else []
        if not self._waiting and not self._under_way and not self._codes:
            ends = range(0, self._header.num_slots, self._size)
            self._waiting = [range(first, min(first + self._size, self._header.num_slots)) for first in ends]
        return []

    def _join(self, message: ByteCohort) -> None:
        run, shared = header_hash(self._header), self._header.shared_slots
        assert shared is not None
        keys = [mask_key_of(member, run) for member in message.members]
        cohort = cohort_hash(message.members)
        if len({member.public_key for member in message.members}) < max(len(keys), shared.participants_min):
            raise ValueError(f"a cohort of fewer than {shared.participants_min} participants")
        if self._key.signed not in message.members or cohort[:COHORT_CHECK_BYTES] != message.check:
            raise ValueError("a cohort that is not what it is called")
        self._cohort, self._others = cohort, [key for key in keys if key != self._key.public_key]

    def next(self) -> range | None:
        """The next slots to measure; None while some are being measured, or none are left."""
        if self._under_way or not self._waiting:
            return None
        self._under_way = self._waiting.pop(0)
        return self._under_way

    def done(self, base_round: int, slots: range, codes: bytes, ledger: Ledger) -> list[ByteMasked]:
        """Slots are measured; with the last of a round all of it can be sent."""
        self._under_way = range(0)
        self.num_measured += len(codes)
        if base_round != ledger.num_rounds:
            return []
        self._codes.update(zip(slots, codes, strict=True))
        if len(self._codes) < self._header.num_slots:
            return []
        reference = ledger.reference_of(base_round)
        assert reference is not None and base_round not in self._took_part
        entries = bytes(self._codes[slot] for slot in range(self._header.num_slots))
        worth = coefficients(entries, reference, self._header.coefficient_max)
        values = np.append(worth, round(float(np.abs(worth).mean())))
        masked = self._key.mask(values, self._others, self._cohort, base_round)
        self._codes = {}
        self._took_part.add(base_round)
        self._sent = ByteMasked(round_number=base_round, check=self._cohort[:COHORT_CHECK_BYTES], values=masked)
        return [self._sent]

    def uncounted(self, ledger: Ledger, own: int | None) -> list[ByteEntries]:
        """Another sequencer cannot use what was meant for the cohort of this one."""
        return []

    def num_own(self, part: Part) -> int:
        """How many of these entries this life has measured."""
        return self._header.num_slots if part.base_round in self._took_part else 0

    def num_entries(self, part: Part) -> int:
        """How many there are."""
        return self._header.num_slots


def measurements_for(
    header: Header, entries_per_message: int, identity: Identity, secret: bytes
) -> Measurements | MaskedMeasurements:
    """What this run needs; `secret`: 32 random bytes of this life."""
    if not header.is_masked:
        return Measurements(header, entries_per_message)
    key = MaskKey(secret, header_hash(header), identity)
    return MaskedMeasurements(header, entries_per_message, key)
