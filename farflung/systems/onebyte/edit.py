"""Editing a fine-tune: journals of one base model are added up, compared, and freed of a participant's share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch

from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.journal import JournalSection, JournalWriter
from farflung.systems.onebyte.records import Participant, Revocation, Section, signed_parts
from farflung.systems.onebyte.replay import steps_of, sums_of, tensor_names


def write_journal(file: BinaryIO, sections: Sequence[JournalSection]) -> None:
    """Write runs one after another; what they hold is checked again."""
    for number, section in enumerate(sections):
        writer = JournalWriter(file, section.header, is_first=not number)
        for record in section.records:
            if not isinstance(record, Section):
                writer.add(record)
        if number + 1 < len(sections):
            writer.add(Section(sections[number + 1].num_rounds_skipped))


def merged(first: Sequence[JournalSection], second: Sequence[JournalSection]) -> list[JournalSection]:
    """One journal whose update is the sum of both; what both begin with counts once.

    Raises:
        ValueError: the second adds nothing, or they cannot be added.
    """
    result = list(first)
    for section in second:
        require_addable(first[0].header, section.header)
        skipped = max(section.num_rounds_skipped, *(num_common_rounds(each, section) for each in result))
        if skipped < section.ledger.num_rounds:
            result.append(
                JournalSection(
                    section.header, section.ledger, section.records, section.chain, num_rounds_skipped=skipped
                )
            )
    if len(result) == len(first):
        raise ValueError("the first journal holds all rounds of the second already: there is nothing to merge")
    return result


def require_addable(first: Header, second: Header) -> None:
    """Refuse journals whose updates are not of one kind.

    Raises:
        ValueError: other base weights, other types of numbers, or other units.
    """
    if (first.base, first.dtype) != (second.base, second.dtype):
        raise ValueError(
            f"one journal is about {first.base_name} ({first.base.hex()[:16]}, {first.dtype}) and the other about "
            f"{second.base_name} ({second.base.hex()[:16]}, {second.dtype}): only journals of one base model fit"
        )
    if first.update_exponent != second.update_exponent:
        raise ValueError(
            f"the journals count in units of 2^-{first.update_exponent} and 2^-{second.update_exponent}: "
            f"only journals of one exponent can be added"
        )


def num_common_rounds(first: JournalSection, second: JournalSection) -> int:
    """With how many equal rounds two journals begin; 0 for different runs."""
    if first.header != second.header:
        return 0
    pairs = list(zip(_signed_rounds(first), _signed_rounds(second), strict=False))
    return next((number for number, (one, other) in enumerate(pairs) if one != other), len(pairs))


def _signed_rounds(section: JournalSection) -> list[tuple[int, list[tuple[bytes, int, int, bytes]]]]:
    """Rounds by who measured what: a participant may have another number in a branch."""
    keys = [participant.public_key for participant in section.ledger.participants]

    return [
        (
            record.reference,
            [(keys[part.participant], part.base_round, part.first_slot, part.codes) for part in signed_parts(record)],
        )
        for record in section.rounds
    ]


def revoked(
    sections: Sequence[JournalSection], participant: str, *, first_round: int = 0, reason: str = ""
) -> list[JournalSection]:
    """The journal without what a participant contributed from `first_round` on; nothing else changes.

    `participant`: its name, its number, or how its peer id begins.

    Raises:
        ValueError: nobody or several are called so, or nothing of theirs counts.
    """
    result: list[JournalSection] = []
    num_revoked = 0
    for section in sections:
        records = list(section.records)
        number = _find(section, participant)
        if number is not None and section.header.is_masked:
            raise ValueError(
                f"what {participant!r} contributed cannot be revoked: this run tells only sums over all participants "
                f"(secure aggregation), from which nobody's share can be taken; replay an earlier copy of the journal"
            )
        counts = number is not None and any(
            part.participant == number and record.number >= first_round for record, part in section.counted()
        )
        if counts and number is not None:
            revocation = Revocation(number, first_round, section.ledger.num_rounds, reason)
            section.ledger.take(revocation, section.chain)
            place = len(records) - isinstance(records[-1], Section)
            records.insert(place, revocation)
            num_revoked += 1
        result.append(
            JournalSection(section.header, section.ledger, records, section.chain, section.num_rounds_skipped)
        )
    if not num_revoked:
        known = ", ".join(name_of(each) for section in sections for each in section.ledger.participants) or "nobody"
        raise ValueError(f"nothing that counts is from {participant!r}: the journal's participants are {known}")
    return result


def _find(section: JournalSection, wanted: str) -> int | None:
    found = [
        number
        for number, each in enumerate(section.ledger.participants)
        if wanted in (each.name, str(number))
        or (len(wanted) >= 6 and section.ledger.peer_of(number).startswith(wanted))
    ]
    if len(found) > 1:
        raise ValueError(f"{wanted!r} may be several participants: give the first letters of a peer id")
    return found[0] if found else None


def name_of(participant: Participant) -> str:
    """The participant's name for people."""
    return participant.name or participant.public_key.hex()[:8]


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How far two journals move one tensor."""

    name: str
    first: float
    """Euclidean norm of the first one's update."""
    second: float
    cosine: float
    """Between the updates: 1 the same direction, 0 unrelated."""


def tensor_difference(first: Sequence[JournalSection], second: Sequence[JournalSection], name: str) -> TensorDifference:
    """Compare the updates of one tensor; a journal that does not tune it moves it by 0."""
    one, other = update_of(first, name), update_of(second, name)
    if one is None or other is None:
        return TensorDifference(name, _norm(one), _norm(other), 0.0)
    norms = (_norm(one), _norm(other))
    cosine = float((one * other).sum()) / (norms[0] * norms[1]) if all(norms) else 0.0
    return TensorDifference(name, *norms, cosine)


def update_of(sections: Sequence[JournalSection], name: str) -> torch.Tensor | None:
    """What is added to the base's tensor, float64, or None if nothing tunes it."""
    total: torch.Tensor | None = None
    for section in sections:
        if name in tensor_names([section]):
            update = sums_of(section, name, steps_of(section)).double() * -(2.0**-section.header.update_exponent)
            total = update if total is None else total + update
    return total


def _norm(update: torch.Tensor | None) -> float:
    return 0.0 if update is None else float(update.norm())
