"""What the page *Invite* shows, and who may act on it."""

import pytest

from farflung.apps.dashboard.invite_view import command_of, invites_view, why_only_look
from farflung.apps.invites import Invite
from farflung.wire.certificate import TicketRole
from farflung.wire.chain import Permission
from farflung.wire.revocation import Withdrawn, number_text
from farflung.wire.ticket import SwarmAuthority, Ticket

NOW = 1_800_000_000.0
DAY = 86400.0
FOUNDER = SwarmAuthority.found("home", NOW).ticket((), NOW + 100 * DAY, NOW)
DEPUTY = FOUNDER.invite(TicketRole.ADMIN, NOW + 50 * DAY, NOW)


def made(parent: Ticket, role: TicketRole) -> Invite:
    ticket = parent.invite(role, NOW + DAY, NOW)
    return Invite(
        swarm_id=ticket.swarm_id,
        number=number_text(ticket.serial),
        role=ticket.role,
        depth=len(ticket.permissions),
        made_at=NOW,
        expires_at=ticket.expires_at,
    )


def nothing(permission: Permission) -> bool:
    return False


@pytest.mark.parametrize("role", [role for role in TicketRole if role is not TicketRole.ADMIN])
def test_who_is_no_admin_may_only_look(role: TicketRole) -> None:
    sentence = why_only_look(FOUNDER.invite(role, NOW + DAY, NOW), "127.0.0.1", is_loopback=True)
    assert f"the ticket of a {role}" in sentence and "start one with an admin's ticket" in sentence
    assert not any(row.can_revoke for row in invites_view(sentence, FOUNDER, [made(FOUNDER, role)], [], nothing).rows)


def test_where_others_reach_it_nobody_may_act() -> None:
    assert why_only_look(DEPUTY, "127.0.0.1", is_loopback=True) == ""
    assert "--host 127.0.0.1" in why_only_look(DEPUTY, "0.0.0.0", is_loopback=False)


def test_rows_tell_what_is_withdrawn_and_what_this_admin_may_withdraw() -> None:
    server, admin = made(FOUNDER, TicketRole.SERVER), made(FOUNDER, TicketRole.ADMIN)
    gone, elsewhere = made(DEPUTY, TicketRole.WORKER), Withdrawn(77, 1)
    withdrawn = [elsewhere, Withdrawn(gone.permission.serial, 1)]
    view = invites_view(
        "",
        DEPUTY,
        [server, admin, gone],
        withdrawn,
        lambda permission: any(one.covers(permission) for one in withdrawn),
    )
    told = {row.number: (row.role, row.is_withdrawn, row.can_revoke) for row in view.rows}
    assert told == {
        server.number: ("server", False, True),
        admin.number: ("admin", False, False),  # as near to the founder as this deputy
        gone.number: ("worker", True, False),
        number_text(77): ("", True, False),
    }


def test_each_role_is_told_its_command() -> None:
    worker = FOUNDER.invite(TicketRole.WORKER, NOW + DAY, NOW)
    assert command_of(worker) == f"farflung join {worker.text()}"
    for role in TicketRole:
        assert command_of(DEPUTY.invite(role, NOW + DAY, NOW)).startswith("farflung ")
