"""Measuring a journal's entries again: a replica goes through the rounds and compares a random share of them (pure).

Weights at the beginning of a round are the sum of what counted before it, so a replica that adds round after round can
measure any entry where its author did: on the weights and the batch of its base round. Losses are floats, so that other
hardware flips the sign of small entries; only large ones, at least the reference of their round, are held against
anybody.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farflung.systems.onebyte.code import CODE_MAX, SIGN_BIT
from farflung.systems.onebyte.held_journal import HeldJournal
from farflung.systems.onebyte.journal import JournalSection
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.records import Round, Section, encode_record
from farflung.systems.onebyte.slots import runs


@dataclass(slots=True)
class Compared:
    """A participant's entries, measured again."""

    num_measured: int = 0
    num_equal: int = 0
    """The same byte."""
    num_large: int = 0
    """At least the reference of their round."""
    num_opposed: int = 0
    """Large ones whose sign is another."""


@dataclass(frozen=True, slots=True)
class _Entry:
    participant: int
    base_round: int
    slot: int
    code: int
    reference: int


def remeasured(
    section: JournalSection,
    learner: ModelLearner,
    share: float,
    draw: Callable[[], float],
    on_round: Callable[[int], object] = lambda number: None,
) -> dict[int, Compared]:
    """What a random share of the entries is to a learner that holds the base weights, by participant.

    Revoked entries are measured too: they show whether the revocation was right. `on_round` hears which is done,
    and `draw` gives numbers between 0 and 1 by chance.

    Raises:
        ValueError: the data were private, or the share chooses nothing.
    """
    if section.header.shared_slots is not None:
        raise ValueError("machines of this run have measured on data of their own, which nobody else can measure again")
    chosen = _chosen(section, share, draw)
    if not chosen:
        raise ValueError("this share of the entries is not one entry: give a larger share")
    found: dict[int, Compared] = {}
    # What was measured after a revocation was measured on the weights without what it takes back, and not before.
    held = HeldJournal(section.header)
    for record in section.records:
        if isinstance(record, Section):
            continue
        if isinstance(record, Round):
            _compare(chosen.get(record.number, []), learner, found)
            on_round(record.number)
        learner.add(held.take(encode_record(record)))
    return found


def _chosen(section: JournalSection, share: float, draw: Callable[[], float]) -> dict[int, list[_Entry]]:
    """By base round."""
    chosen: dict[int, list[_Entry]] = {}
    for record in section.rounds:
        for part in record.parts:
            for slot, code in enumerate(part.codes, start=part.first_slot):
                if draw() < share:
                    entry = _Entry(part.participant, part.base_round, slot, code, record.reference)
                    chosen.setdefault(part.base_round, []).append(entry)
    return chosen


def _compare(entries: Sequence[_Entry], learner: ModelLearner, found: dict[int, Compared]) -> None:
    codes: dict[int, int] = {}
    flat = runs(sorted({entry.slot for entry in entries}))
    for first, count in zip(flat[::2], flat[1::2], strict=True):
        measured = learner.measure(entries[0].base_round, first, count)
        codes.update(enumerate(measured, start=first))
    for entry in entries:
        mine, compared = codes[entry.slot], found.setdefault(entry.participant, Compared())
        compared.num_measured += 1
        compared.num_equal += mine == entry.code
        if entry.code & CODE_MAX >= entry.reference:
            compared.num_large += 1
            # A large entry of theirs that is nothing here is as wrong as one of the other sign.
            compared.num_opposed += (mine ^ entry.code) & SIGN_BIT != 0 or not mine & CODE_MAX
