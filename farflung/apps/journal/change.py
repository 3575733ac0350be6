"""`farflung journal merge` and `revoke`: a new journal beside the old ones, which stay as they are."""

from pathlib import Path

from farflung.apps.journal.files import open_journal, require_new, save_journal
from farflung.systems.onebyte.edit import merged, revoked


def merge_journals(first: Path, second: Path, output: Path) -> None:
    """Write the sum of two journals.

    Raises:
        ValueError: one is damaged, they do not fit together, or the result cannot be written.
    """
    require_new(output)
    sections = merged(open_journal(first), open_journal(second))
    save_journal(output, sections)
    counted = sum(section.ledger.num_rounds - section.num_rounds_skipped for section in sections)
    print(f"{output} holds {len(sections)} runs with {counted} rounds that count.")


def revoke_participant(path: Path, participant: str, output: Path, *, first_round: int, reason: str) -> None:
    """Write a journal without what a participant contributed.

    Raises:
        ValueError: it is damaged, nothing in it is from this participant, or the result cannot be written.
    """
    require_new(output)
    sections = revoked(open_journal(path), participant, first_round=first_round, reason=reason)
    save_journal(output, sections)
    print(f"{output} holds nothing of {participant} from round {first_round} on.")
