"""What the page *Invite* shows: which tickets were made here or withdrawn anywhere, and whether one may act at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farflung.apps.invites import Invite
from farflung.wire.certificate import TicketRole
from farflung.wire.chain import Permission
from farflung.wire.revocation import Withdrawn, number_text
from farflung.wire.ticket import Ticket

ROLES = {
    TicketRole.CLIENT: "client: asks models, watches",
    TicketRole.WORKER: "worker: takes part in a run",
    TicketRole.SERVER: "server: serves blocks of models",
    TicketRole.ADMIN: "admin: may invite and withdraw",
}
_COMMANDS = {
    TicketRole.CLIENT: "farflung chat MODEL --join {}",
    TicketRole.WORKER: "farflung join {}",
    TicketRole.SERVER: "farflung serve MODEL --join {}",
    TicketRole.ADMIN: "farflung dashboard --join {}",
}


@dataclass(frozen=True, slots=True)
class InviteRow:
    """One ticket."""

    number: str
    role: str
    """Empty: it was made elsewhere."""
    made_at: float | None
    """Wall-clock seconds, like the next."""
    expires_at: float | None
    is_withdrawn: bool
    can_revoke: bool
    """By this dashboard."""


@dataclass(frozen=True, slots=True)
class InvitesView:
    """The whole page."""

    refusal: str
    """Why nothing can be done here; empty: all can."""
    rows: tuple[InviteRow, ...]


def why_only_look(ticket: Ticket, host: str, *, is_loopback: bool) -> str:
    """One sentence if a dashboard with this ticket that listens on `host` may not invite; else nothing."""
    if ticket.role is not TicketRole.ADMIN:
        return (
            f"This dashboard has the ticket of a {ticket.role}, which may look but neither invite nor withdraw: start "
            "one with an admin's ticket, such as the founder's (the file `ticket` in its home)."
        )
    if not is_loopback:
        return (
            f"This dashboard listens on {host}, and whoever reaches it could invite: to invite, start one that "
            "listens on this machine alone (--host 127.0.0.1)."
        )
    return ""


def invites_view(
    refusal: str,
    admin: Ticket,
    made: Sequence[Invite],
    withdrawn: Sequence[Withdrawn],
    is_revoked: Callable[[Permission], bool],
) -> InvitesView:
    """The page as of now; `made`: here; `withdrawn`: wherever it was made."""
    by_admin = Withdrawn(0, len(admin.permissions))
    rows = [_row(invite, by_admin, is_revoked(invite.permission), refusal) for invite in made]
    here = {row.number for row in rows}
    others = [number_text(one.serial) for one in withdrawn if number_text(one.serial) not in here]
    elsewhere = [InviteRow(number, "", None, None, is_withdrawn=True, can_revoke=False) for number in others]
    return InvitesView(refusal, (*rows, *elsewhere))


def _row(invite: Invite, by_admin: Withdrawn, is_withdrawn: bool, refusal: str) -> InviteRow:
    would_cover = by_admin._replace(serial=invite.permission.serial).covers(invite.permission)
    return InviteRow(
        number=invite.number,
        role=invite.role,
        made_at=invite.made_at,
        expires_at=invite.expires_at,
        is_withdrawn=is_withdrawn,
        can_revoke=not refusal and not is_withdrawn and would_cover,
    )


def command_of(ticket: Ticket) -> str:
    """The line with which its holder comes in."""
    return _COMMANDS[ticket.role].format(ticket.text())
