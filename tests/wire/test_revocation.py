"""Withdrawn tickets: who may withdraw which, and every way in which a statement proves nothing."""

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from farflung.wire.certificate import CLOCK_SKEW_SECONDS, ChainRefused, TicketRole
from farflung.wire.chain import Permission
from farflung.wire.revocation import Revocation, Withdrawn, check, may_revoke, number_text, revoke
from farflung.wire.ticket import SwarmAuthority, Ticket

NOW = 1_800_000_000.0
DAY = 86_400.0
AUTHORITY = SwarmAuthority.found("test", NOW)
FOUNDER = AUTHORITY.ticket((), NOW + 100 * DAY, NOW)
DEPUTY = FOUNDER.invite(TicketRole.ADMIN, NOW + 10 * DAY, NOW)
SERVER = FOUNDER.invite(TicketRole.SERVER, NOW + 50 * DAY, NOW)


def by(admin: Ticket, other: Ticket) -> Revocation:
    return revoke(admin, other.serial, other.expires_at, NOW)


def proven(revocation: Revocation, now: float = NOW) -> Withdrawn:
    return check(revocation, FOUNDER.authority, FOUNDER.swarm_id, now)


def permission_of(ticket: Ticket) -> Permission:
    return Permission(ticket.serial, ticket.role, len(ticket.permissions))


@pytest.mark.parametrize(
    ("admin", "other", "is_covered"),
    [
        (FOUNDER, SERVER, True),
        (FOUNDER, DEPUTY, True),
        (DEPUTY, SERVER, True),
        (DEPUTY, DEPUTY.invite(TicketRole.ADMIN, NOW + DAY, NOW), True),
        (DEPUTY, FOUNDER, False),
        (DEPUTY, FOUNDER.invite(TicketRole.ADMIN, NOW + DAY, NOW), False),
        (FOUNDER, AUTHORITY.ticket((), NOW + DAY, NOW), False),
    ],
    ids=[
        "server",
        "deputy",
        "server by deputy",
        "below deputy",
        "founder by deputy",
        "another deputy",
        "founder's own",
    ],
)
def test_an_admin_withdraws_members_and_admins_further_from_the_founder(
    admin: Ticket, other: Ticket, is_covered: bool
) -> None:
    assert proven(by(admin, other)).covers(permission_of(other)) is is_covered
    assert may_revoke(admin, other) is is_covered


def test_nobody_else_is_withdrawn() -> None:
    other = FOUNDER.invite(TicketRole.SERVER, NOW + DAY, NOW)
    assert not proven(by(FOUNDER, SERVER)).covers(permission_of(other))


def test_whoever_is_no_admin_withdraws_nothing() -> None:
    with pytest.raises(ValueError, match="a server ticket cannot revoke others"):
        by(SERVER, DEPUTY)
    _, key = SERVER.own_permission()
    honest = by(FOUNDER, DEPUTY)
    draft = msgspec.structs.replace(honest, permissions=SERVER.permissions)
    forged = msgspec.structs.replace(draft, signature=key.sign(draft.content(), ec.ECDSA(hashes.SHA256())))
    with pytest.raises(ChainRefused, match="a server ticket cannot revoke others"):
        proven(forged)


@pytest.mark.parametrize(
    "changes",
    [
        {"serial": DEPUTY.serial.to_bytes(20, "big")},
        {"expires_at": NOW + 99 * DAY},
        {"issued_at": NOW - 1},
        {"permissions": DEPUTY.permissions},
        {"signature": bytes(64)},
    ],
    ids=["serial", "end", "time", "admin", "signature"],
)
def test_an_altered_statement_proves_nothing(changes: dict[str, object]) -> None:
    with pytest.raises(ChainRefused, match="not signed by the admin"):
        proven(msgspec.structs.replace(by(FOUNDER, SERVER), **changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"swarm_id": bytes(32)}, "another swarm"),
        ({"serial": b"short"}, "no number"),
        ({"permissions": ()}, "nobody's name"),
        ({"permissions": (b"noise",)}, "no certificate"),
        ({"issued_at": NOW + CLOCK_SKEW_SECONDS + 1}, "from the future"),
        ({"issued_at": NOW - DAY}, "not valid yet"),
    ],
)
def test_an_impossible_statement_is_refused_in_words(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ChainRefused, match=sentence):
        proven(msgspec.structs.replace(by(FOUNDER, SERVER), **changes))


def test_an_admin_of_another_swarm_withdraws_nothing_here() -> None:
    other = SwarmAuthority.found("test", NOW).ticket((), NOW + DAY, NOW)
    claimed = msgspec.structs.replace(by(other, SERVER), swarm_id=FOUNDER.swarm_id)
    with pytest.raises(ChainRefused):
        proven(claimed)


def test_what_an_admin_withdrew_stands_when_its_own_ticket_has_ended() -> None:
    assert DEPUTY.expires_at < NOW + 20 * DAY < SERVER.expires_at
    assert proven(by(DEPUTY, SERVER), NOW + 20 * DAY).covers(permission_of(SERVER))


def test_a_number_is_written_in_forty_digits() -> None:
    assert number_text(10) == "0" * 39 + "a"
    with pytest.raises(ValueError, match="not the number of a ticket"):
        revoke(FOUNDER, 1 << 160, NOW, NOW)
