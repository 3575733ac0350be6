"""Tickets: which one to use, where a founder keeps its own, and making further ones (`farflung invite`)."""

import os
import re
import time
from pathlib import Path

from farflung.runtime.home import default_home
from farflung.runtime.store import write_durably
from farflung.wire.certificate import TicketRole
from farflung.wire.ticket import Ticket

TICKET_VARIABLE = "FARFLUNG_TICKET"

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def find_ticket(given: str | None) -> str:
    """The ticket that was given, or that of the environment.

    Raises:
        ValueError: there is none, or it is damaged or expired.
    """
    ticket = given or os.environ.get(TICKET_VARIABLE)
    if not ticket:
        raise ValueError(
            f"a ticket is needed: give --join TICKET (in Python swarm=TICKET), or set {TICKET_VARIABLE}; "
            "whoever founded the swarm prints one with `farflung invite`"
        )
    Ticket.parse(ticket, time.time())
    return ticket


def parse_duration(text: str) -> float:
    """Seconds of a text such as 90s, 30m, 12h, 7d or 2w.

    Raises:
        ValueError: not of that form, or zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise ValueError(f"{text!r} is no duration: write a number and a unit, such as 30m, 12h or 7d")
    return seconds


def ticket_path(home: Path | None) -> Path:
    """Where the founder of a swarm keeps its admin ticket."""
    return (home or default_home()).expanduser() / "ticket"


def write_ticket(path: Path, text: str) -> None:
    """Write a ticket so that its owner alone can read it.

    Raises:
        ValueError: the file cannot be written.
    """
    try:
        write_durably(path, text.encode() + b"\n")
    except OSError as error:
        raise ValueError(f"the ticket cannot be written to {path}: {error.strerror}") from None


def read_ticket(path: Path) -> str | None:
    """The ticket in a file; None if there is none."""
    return path.read_text(encoding="ascii").strip() if path.exists() else None


def invite(parent: str | None, role: str, expires: str, home: Path | None) -> str:
    """A new ticket for `role` that ends after `expires`, made from `parent` or from the one in `home`; no network.

    Raises:
        ValueError: no ticket to make it from, one that may not invite, an unknown role, an impossible duration.
    """
    text = parent or read_ticket(ticket_path(home))
    if text is None:
        raise ValueError(
            f"there is no ticket to invite with: run this where the swarm was founded ({ticket_path(home)} would "
            "hold its ticket), or give an admin's ticket with --join"
        )
    if role not in set(TicketRole):
        raise ValueError(f"--role must be one of {', '.join(TicketRole)}, not {role!r}")
    now = time.time()
    return Ticket.parse(text, now).invite(TicketRole(role), now + parse_duration(expires), now).text()
