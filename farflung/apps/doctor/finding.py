"""What the doctor has found about one thing: how it stands, and what mends it."""

import enum
from dataclasses import dataclass


class State(enum.StrEnum):
    """How it stands."""

    FINE = "fine"
    NOTE = "note"
    """Nothing is wrong, but it is good to know."""
    WRONG = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    subject: str
    state: State
    says: str
    mend: str = ""
    """The command, or what else mends it; "" where nothing is to be done."""


def fine(subject: str, says: str) -> Finding:
    """Nothing to do."""
    return Finding(subject=subject, state=State.FINE, says=says)


def note(subject: str, says: str, mend: str = "") -> Finding:
    """Good to know."""
    return Finding(subject=subject, state=State.NOTE, says=says, mend=mend)


def wrong(subject: str, says: str, mend: str) -> Finding:
    """Something that will fail."""
    return Finding(subject=subject, state=State.WRONG, says=says, mend=mend)
