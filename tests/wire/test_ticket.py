"""Tickets: what they say, what they may make, and every way in which they are refused."""

import itertools

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from farflung.wire import certificate
from farflung.wire.certificate import NUM_PERMISSIONS_MAX, ChainRefused, TicketRole
from farflung.wire.chain import Member, check_chain
from farflung.wire.identity import Identity
from farflung.wire.ticket import PREFIX, Credentials, Meeting, SwarmAuthority, Ticket
from farflung.world.address import PeerId

NOW = 1_800_000_000.0
DAY = 86_400.0
AUTHORITY = SwarmAuthority.found("test", NOW)
MEETINGS = (Meeting(PeerId("a" * 52), ("192.0.2.1:4000", "[2001:db8::1]:4000")),)
ADMIN = AUTHORITY.ticket(MEETINGS, NOW + 100 * DAY, NOW)
NODE = Identity(bytes([7]) * 32)


def invited(role: TicketRole, days: float = 7) -> Ticket:
    return ADMIN.invite(role, NOW + days * DAY, NOW)


@pytest.mark.parametrize("role", list(TicketRole))
def test_a_ticket_is_one_line_that_reads_back(role: TicketRole) -> None:
    ticket = invited(role)
    text = ticket.text()
    assert text.startswith(PREFIX)
    assert text == "".join(text.split())
    assert len(text) < 2500
    parsed = Ticket.parse(f"  {text[:70]}\n{text[70:]}\n", NOW)
    assert parsed == ticket
    assert (parsed.role, parsed.swarm, parsed.meetings) == (role, "test", MEETINGS)
    assert parsed.expires_at == NOW + 7 * DAY
    assert parsed.swarm_id == ADMIN.swarm_id


def test_the_founder_keeps_the_authority() -> None:
    again = SwarmAuthority.from_bytes(AUTHORITY.to_bytes())
    assert again == AUTHORITY
    assert again.ticket((), NOW + DAY, NOW).swarm_id == ADMIN.swarm_id
    for name in ("", "x" * 61):
        with pytest.raises(ValueError, match="1 to 60"):
            SwarmAuthority.found(name, NOW)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not a ticket"),
        ("hello", "is not a ticket"),
        (PREFIX, "damaged"),
        (PREFIX + "%%%", "damaged"),
        (PREFIX + "AAAA", "damaged"),
        (ADMIN.text()[:-1], "damaged"),
        (ADMIN.text()[:200], "damaged"),
        (ADMIN.text().replace("A", "B", 1), "damaged"),
        (ADMIN.text() + "AAAA", "damaged"),
    ],
)
def test_what_is_no_ticket_is_said_so(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Ticket.parse(text, NOW)


@given(st.text(max_size=300))
def test_noise_is_never_a_ticket(text: str) -> None:
    for candidate in (text, PREFIX + text):
        with pytest.raises(ValueError, match="ticket"):
            Ticket.parse(candidate, NOW)


def test_an_expired_ticket_says_when() -> None:
    text = invited(TicketRole.CLIENT).text()
    assert Ticket.parse(text, NOW + 7 * DAY - 1)
    with pytest.raises(ValueError, match="expired on 22 January 2027 at 08:00 UTC; ask an admin"):
        Ticket.parse(text, NOW + 7 * DAY)
    with pytest.raises(ValueError, match="not valid yet; check this machine's clock"):
        Ticket.parse(text, NOW - DAY)


def test_a_ticket_with_another_key_or_authority_or_nothing_is_forged() -> None:
    other = SwarmAuthority.found("test", NOW).ticket(MEETINGS, NOW + DAY, NOW)
    for forged, sentence in (
        (Ticket(**{**_fields(ADMIN), "private_key": other.private_key}), "key is not its permission's"),
        (Ticket(**{**_fields(ADMIN), "private_key": b""}), "no key"),
        (Ticket(**{**_fields(ADMIN), "authority": other.authority}), "do not lead to this swarm's authority"),
        (Ticket(**{**_fields(ADMIN), "permissions": ()}), "no permission"),
        (Ticket(**{**_fields(ADMIN), "permissions": (b"noise",)}), "no certificate"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Ticket.parse(forged.text(), NOW)


def _fields(ticket: Ticket) -> dict[str, object]:
    return {name: getattr(ticket, name) for name in ticket.__struct_fields__}


@pytest.mark.parametrize("role", [TicketRole.CLIENT, TicketRole.WORKER, TicketRole.SERVER])
def test_only_an_admin_invites(role: TicketRole) -> None:
    with pytest.raises(ValueError, match=f"a {role} ticket cannot make further tickets"):
        invited(role).invite(TicketRole.CLIENT, NOW + DAY, NOW)


def test_an_invitation_ends_in_the_future_and_not_after_its_parent() -> None:
    with pytest.raises(ValueError, match="cannot outlive"):
        invited(TicketRole.ADMIN).invite(TicketRole.CLIENT, NOW + 8 * DAY, NOW)
    with pytest.raises(ValueError, match="in the future"):
        ADMIN.invite(TicketRole.CLIENT, NOW, NOW)


def test_admins_invite_admins_a_few_generations_deep() -> None:
    ticket, generations = ADMIN, 1
    with pytest.raises(ValueError, match="too many invitations"):
        while True:
            ticket = ticket.invite(TicketRole.ADMIN, NOW + DAY, NOW)
            generations += 1
            server = ticket.invite(TicketRole.SERVER, NOW + DAY, NOW)
            assert _member(server.issue(NODE, NOW)).role is TicketRole.SERVER
    assert generations == NUM_PERMISSIONS_MAX - 1


def _member(credentials: Credentials, now: float = NOW) -> Member:
    return check_chain(credentials.chain, credentials.authority, now)


@pytest.mark.parametrize("role", list(TicketRole))
def test_a_leaf_proves_peer_and_role(role: TicketRole) -> None:
    member = _member(invited(role).issue(NODE, NOW))
    assert (member.peer, member.role, member.expires_at) == (NODE.peer, role, NOW + 7 * DAY)
    assert member.public_key == NODE.public_key
    with pytest.raises(ChainRefused, match="expired"):
        _member(invited(role).issue(NODE, NOW), NOW + 8 * DAY)


def test_a_revoked_permission_and_all_below_it_are_refused() -> None:
    above = invited(TicketRole.ADMIN)
    below = above.invite(TicketRole.SERVER, NOW + DAY, NOW).issue(NODE, NOW)
    with pytest.raises(ChainRefused, match="revoked"):
        check_chain(below.chain, below.authority, NOW, lambda permission: permission.serial == above.serial)
    assert check_chain(below.chain, below.authority, NOW, lambda permission: permission.serial == ADMIN.serial + 1)


def test_noise_is_no_chain() -> None:
    with pytest.raises(ChainRefused, match="no certificate"):
        certificate.load_chain((b"noise",))


def test_a_chain_tells_what_each_of_its_permissions_is() -> None:
    above = invited(TicketRole.ADMIN)
    below = above.invite(TicketRole.SERVER, NOW + DAY, NOW)
    assert _member(below.issue(NODE, NOW)).permissions == (
        (ADMIN.serial, TicketRole.ADMIN, 1),
        (above.serial, TicketRole.ADMIN, 2),
        (below.serial, TicketRole.SERVER, 3),
    )


def _sign_below(ticket: Ticket, role: TicketRole, path_length: int, expires_at: float) -> Credentials:
    """A further permission that a bearer signs by hand, past every check of `invite`, and a leaf of it."""
    issuer, issuer_key = ticket.own_permission()
    key, leaf_key = certificate.new_key(), certificate.new_key()
    permission = certificate.make_permission(issuer, issuer_key, key, role, path_length, NOW, expires_at)
    leaf = certificate.make_leaf(permission, key, leaf_key, NODE, NOW, expires_at)
    chain: tuple[x509.Certificate, ...] = (leaf, permission, *ticket.chain())
    return Credentials(b"", chain, ticket.authority_certificate())


@pytest.mark.parametrize(("own", "wanted"), list(itertools.product(TicketRole, TicketRole)))
def test_no_ticket_but_an_admins_can_sign_a_further_permission(own: TicketRole, wanted: TicketRole) -> None:
    credentials = _sign_below(invited(own), wanted, 0, NOW + DAY)
    if own is TicketRole.ADMIN:
        assert _member(credentials).role is wanted
    else:
        with pytest.raises(ChainRefused, match="may not invite"):
            _member(credentials)


def test_a_hand_signed_permission_cannot_be_longer_deeper_or_for_a_non_admin_inviting() -> None:
    admin = invited(TicketRole.ADMIN)
    with pytest.raises(ChainRefused, match="outlives"):
        _member(_sign_below(admin, TicketRole.CLIENT, 0, NOW + 8 * DAY))
    with pytest.raises(ChainRefused, match="may not invite"):
        _member(_sign_below(admin, TicketRole.ADMIN, NUM_PERMISSIONS_MAX, NOW + DAY))
    with pytest.raises(ChainRefused, match="cannot make further tickets"):
        _member(_sign_below(admin, TicketRole.CLIENT, 1, NOW + DAY))


def test_roles_widen_in_one_direction_only() -> None:
    client, worker, server, admin = TicketRole
    granted = {role: {other for other in TicketRole if role.may_grant(other)} for role in TicketRole}
    assert granted == {
        client: {client},
        worker: {client, worker},
        server: {client, server},
        admin: {client, worker, server, admin},
    }


def test_a_leaf_whose_tls_key_the_peer_did_not_sign_is_refused() -> None:
    issuer, issuer_key = ADMIN.own_permission()

    class Pretender:
        peer, public_key, private_key = NODE.peer, NODE.public_key, bytes([9]) * 32

    leaf = certificate.make_leaf(issuer, issuer_key, certificate.new_key(), Pretender, NOW, NOW + DAY)  # type: ignore[arg-type]
    with pytest.raises(ChainRefused, match="not signed by the peer"):
        check_chain((leaf, issuer), ADMIN.authority_certificate(), NOW)


def test_chains_of_other_swarms_and_wrong_shapes_are_refused() -> None:
    credentials = invited(TicketRole.SERVER).issue(NODE, NOW)
    other = SwarmAuthority.found("test", NOW).ticket((), NOW + DAY, NOW)
    with pytest.raises(ChainRefused, match="do not lead"):
        check_chain(credentials.chain, other.authority_certificate(), NOW)
    leaf, *permissions = credentials.chain
    for chain in ([], [leaf], [leaf, *permissions[1:]], [leaf, permissions[0]], [*permissions], [leaf] * 9):
        with pytest.raises(ChainRefused):
            check_chain(chain, credentials.authority, NOW)
