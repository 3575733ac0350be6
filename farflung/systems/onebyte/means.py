"""Shared slots: what a slot's entries of several participants are worth together, and how journals add it up (pure).

    coefficient of a slot = mean over participants, without the same share of the largest and of the smallest
    step                  = (integer rate of the slot's round) * coefficient, rounded once

It depends on nothing but the set of entries: a late one changes the mean to what it would have been at once, and
without a participant the mean is what it would have been without it.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from farflung.systems.onebyte.code import coefficients
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.journal import JournalSection
from farflung.systems.onebyte.records import Part, Round, Summed
from farflung.systems.onebyte.steps import Step

Counts = Callable[[int, int], bool]
"""Whether what a participant contributed in a committed round counts."""
NOTHING = np.iinfo(np.int64).max
"""Where a participant has no entry: it stands behind all that are."""


def trimmed_sums(values: np.ndarray, present: np.ndarray, trim_percent: int) -> tuple[np.ndarray, np.ndarray]:
    """Of integers [participants, slots], those that are present: sum and number of what is left of each slot.

    `trim_percent` of the entries of a slot, rounded down, are left out at either end.
    """
    counts = present.sum(0)
    num_trimmed = counts * trim_percent // 100
    ordered = np.sort(np.where(present, values, NOTHING), axis=0)
    ranks = np.arange(len(values))[:, None]
    is_kept = (ranks >= num_trimmed) & (ranks < counts - num_trimmed)
    return np.where(is_kept, ordered, 0).sum(0), is_kept.sum(0)


def divided(totals: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """totals / numbers, rounded to the nearest integer and halves away from 0; 0 where there is nothing."""
    numbers = np.maximum(numbers, 1)
    return np.sign(totals) * ((2 * np.abs(totals) + numbers) // (2 * numbers))


def mean_weights(header: Header, base_round: int, reference: int, parts: Iterable[Part]) -> np.ndarray:
    """c of each slot of a round, int64 [num_slots]; `parts` are all entries of that round that count."""
    shared, found = header.shared_slots, list(parts)
    assert shared is not None
    rows = {participant: row for row, participant in enumerate(dict.fromkeys(part.participant for part in found))}
    values = np.zeros((len(rows), header.num_slots), dtype=np.int64)
    present = np.zeros_like(values, dtype=bool)
    for part in found:
        slots = slice(part.first_slot, part.first_slot + len(part.codes))
        values[rows[part.participant], slots] = coefficients(part.codes, reference, header.coefficient_max)
        present[rows[part.participant], slots] = True
    totals, numbers = trimmed_sums(values, present, shared.trimmed_percent)
    weights = divided(totals * header.schedule.rate_of(base_round), numbers)
    return np.where(present.sum(0) >= shared.participants_min, weights, 0)


def summed_weights(header: Header, record: Summed) -> np.ndarray:
    """The same from a sum over a cohort."""
    totals = record.coefficients.astype(np.int64) * header.schedule.rate_of(record.number)
    return divided(totals, np.full(header.num_slots, len(record.cohort)))


class SharedMeans:
    """What each round of a run adds at present, and how that changes as the journal grows."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._weights: dict[int, np.ndarray] = {}

    def follow(
        self, rounds: Sequence[Round | Summed], counts: Counts, bases: Iterable[int] | None = None
    ) -> list[Step]:
        """What moves the sums from what they were to those of `rounds`, which are all from round 0 on.

        `bases`: the rounds whose entries have changed, if not any of them.
        """
        if bases is None:
            bases = {number for record in rounds for number in bases_of(record)}
        steps: list[Step] = []
        for base in sorted(bases):
            after = self._round_weights(rounds, base, counts)
            before = self._weights.get(base)
            self._weights[base] = after
            steps.append(Step(base, 0, after if before is None else after - before))
        return steps

    def _round_weights(self, rounds: Sequence[Round | Summed], base: int, counts: Counts) -> np.ndarray:
        record = rounds[base]
        if isinstance(record, Summed):
            return summed_weights(self._header, record)
        window = rounds[base : base + self._header.staleness_rounds_max + 1]
        parts = (
            part
            for later in window
            for part in later.parts
            if part.base_round == base and counts(part.participant, later.number)
        )
        return mean_weights(self._header, base, record.reference, parts)


def bases_of(record: Round | Summed) -> set[int]:
    """Rounds of which a record holds entries."""
    return {record.number} if isinstance(record, Summed) else {part.base_round for part in record.parts}


def section_means(section: JournalSection) -> list[Step]:
    """What counts in a run with shared slots, beyond the rounds that a section before it holds already."""
    rounds, means = section.rounds, SharedMeans(section.header)

    def counts(participant: int, committed_round: int) -> bool:
        return not section.ledger.is_revoked(participant, committed_round)

    means.follow(rounds[: section.num_rounds_skipped], counts)
    return means.follow(rounds, counts)
