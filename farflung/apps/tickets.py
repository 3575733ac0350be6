"""Tickets: which one to use, where a founder keeps its own, making further ones, and what withdraws one."""

import os
import re
import time
from pathlib import Path

from farflung.runtime.home import default_home
from farflung.runtime.store import write_durably
from farflung.wire.certificate import TicketRole, expiry
from farflung.wire.revocation import Revocation, may_revoke, number_text, revoke
from farflung.wire.ticket import PREFIX, Ticket

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


def admin_ticket(given: str | None, home: Path | None) -> Ticket:
    """The ticket that was given, or else the founder's in `home`; it may turn out to be no admin's.

    Raises:
        ValueError: there is none, or it is damaged or expired.
    """
    text = given or read_ticket(ticket_path(home))
    if text is None:
        raise ValueError(
            f"there is no admin's ticket: run this where the swarm was founded ({ticket_path(home)} would hold it), or "
            "give one with --join"
        )
    return Ticket.parse(text, time.time())


def invite(parent: str | None, role: str, expires: str, home: Path | None) -> str:
    """A new ticket for `role` that ends after `expires`, made from `parent` or from the one in `home`; no network.

    Raises:
        ValueError: no ticket to make it from, one that may not invite, an unknown role, an impossible duration.
    """
    admin = admin_ticket(parent, home)
    if role not in set(TicketRole):
        raise ValueError(f"--role must be one of {', '.join(TicketRole)}, not {role!r}")
    now = time.time()
    return admin.invite(TicketRole(role), now + parse_duration(expires), now).text()


def number_of(ticket: str) -> str:
    """The number by which a ticket may be withdrawn."""
    return number_text(Ticket.parse(ticket, time.time()).serial)


def revocation_of(which: str, admin: Ticket) -> Revocation:
    """What withdraws a ticket, given as its text or its number, in the name of `admin`.

    Raises:
        ValueError: neither, of another swarm, or not for this admin to withdraw.
    """
    now, text = time.time(), which.strip()
    if re.fullmatch(r"[0-9a-f]{40}", text):
        # How long it is valid is not known, but no longer than any ticket of the swarm.
        return revoke(admin, int(text, 16), expiry(admin.authority_certificate()), now)
    if not text.startswith(PREFIX):
        raise ValueError("give the ticket to withdraw, or its number of 40 digits, as `farflung invite` has told it")
    ticket = Ticket.parse(text, now)
    if ticket.swarm_id != admin.swarm_id:
        raise ValueError("that ticket is of another swarm than the admin's")
    if admin.role is TicketRole.ADMIN and not may_revoke(admin, ticket):
        raise ValueError("an admin's ticket is withdrawn by an admin nearer to the founder; ask one")
    return revoke(admin, ticket.serial, ticket.expires_at, now)
