"""Who is let in: tickets at the door, strangers, other swarms, and forged permissions."""

import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from farflung.runtime.channel import METHOD, OPTIONS
from farflung.runtime.handshake import Self, greet
from farflung.runtime.lane import StreamBroken
from farflung.runtime.node import open_node
from farflung.wire import certificate
from farflung.wire.certificate import TicketRole, host_name, to_pem
from farflung.wire.control import Hello, Welcome, encode_control
from farflung.wire.identity import Identity
from farflung.wire.ticket import Credentials, SwarmAuthority, Ticket
from farflung.world.doors import Contact
from tests.runtime.conftest import PATIENCE_SECONDS, Swarm, eventually, introduce
from tests.runtime.rogue import Rogue

pytestmark = pytest.mark.loopback


async def test_a_stranger_without_certificate_does_not_get_past_tls(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    root = to_pem([a.ticket.authority_certificate()])
    options = [*OPTIONS, ("grpc.ssl_target_name_override", host_name(a.identity.peer))]
    async with grpc.aio.secure_channel(a.endpoints[0], grpc.ssl_channel_credentials(root), options=options) as channel:
        call = channel.stream_stream(METHOD)()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.write(encode_control(Hello(version_min=1, version_max=1, nonce=bytes(32))))
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert a.network.links() == {}


async def test_a_member_of_another_swarm_is_refused_in_words(swarm: Swarm, tmp_path: Path) -> None:
    a, _ = await swarm.add()
    other = await open_node(new_swarm="test", home=tmp_path / "other")
    try:
        other.network.introduce(a.identity.peer, a.contact)
        assert not await other.network.linked(a.identity.peer, 2)
        with pytest.raises(StreamBroken, match="another swarm"):
            await other.network.dial(other.network.peering(a.identity.peer), a.contact)
    finally:
        await other.close()
    assert a.network.links() == {}


async def test_a_ticket_that_expires_no_longer_opens_the_door(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    b, echo_b = await swarm.add(ticket=swarm.ticket(seconds=2.0))
    await eventually(lambda: time.time() > b.ticket.expires_at)
    introduce(b, a)
    echo_b.ask(a.identity.peer, 1)
    await eventually(echo_b.losses)
    assert "expired" in echo_b.losses()[0][1]
    with pytest.raises(ValueError, match="expired"):
        await open_node(ticket=b.ticket.text())


async def test_a_revoked_ticket_is_refused_with_the_reason(swarm: Swarm, tmp_path: Path) -> None:
    revoked: list[int] = []
    a = await open_node(
        new_swarm="strict", home=tmp_path / "strict", is_revoked=lambda permission: permission.serial in revoked
    )
    ticket = a.ticket.invite(TicketRole.CLIENT, time.time() + 3600, time.time())
    revoked.append(ticket.serial)
    b = await open_node(ticket=ticket, home=tmp_path / "b")
    try:
        for _ in range(200):  # at whatever moment the refusal meets the call
            with pytest.raises(StreamBroken, match="revoked"):
                await b.network.dial(b.network.peering(a.identity.peer), a.contact)
    finally:
        await b.close()
        await a.close()


@pytest.mark.parametrize("is_caller", [True, False], ids=["it called", "it was called"])
async def test_the_link_of_a_revoked_peer_is_closed_and_it_is_not_called_again(
    swarm: Swarm, tmp_path: Path, is_caller: bool
) -> None:
    revoked: list[int] = []
    a, _ = await swarm.add()
    ticket = a.ticket.invite(TicketRole.SERVER, time.time() + 3600, time.time())
    strict = await open_node(
        ticket=swarm.ticket(), home=tmp_path / "c", is_revoked=lambda permission: permission.serial in revoked
    )
    b, _ = await swarm.add(ticket=ticket)
    try:
        caller, called = (b, strict) if is_caller else (strict, b)
        caller.network.introduce(called.identity.peer, called.contact)
        assert await caller.network.linked(called.identity.peer, PATIENCE_SECONDS)
        await eventually(lambda: b.identity.peer in strict.network.links())
        assert strict.network.close_revoked() == []
        revoked.append(ticket.serial)
        assert strict.network.close_revoked() == [b.identity.peer]
        assert b.identity.peer not in strict.network.links()
        with pytest.raises(StreamBroken, match="revoked"):
            await strict.network.dial(strict.network.peering(b.identity.peer), b.contact)
        with pytest.raises(StreamBroken):  # gRPC may lose the reason when a call is refused before Hello has come
            await b.network.dial(b.network.peering(strict.identity.peer), strict.contact)
        assert b.identity.peer not in strict.network.links()
    finally:
        await strict.close()


async def test_the_role_of_a_caller_is_known_from_its_certificate(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    for role in TicketRole:
        b, _ = await swarm.add(role=role)
        assert await b.network.linked(a.identity.peer, PATIENCE_SECONDS)
        await eventually(lambda peer=b.identity.peer: a.network.role(peer) is not None)
        assert a.network.role(b.identity.peer) is role
        assert b.role is role


def forged(ticket: Ticket, identity: Identity, role: TicketRole, path_length: int, expires_at: float) -> Credentials:
    """What the bearer of `ticket` gets by signing a further permission itself, without asking `invite`."""
    now, key = time.time(), certificate.new_key()
    issuer, issuer_key = ticket.own_permission()
    permission = certificate.make_permission(issuer, issuer_key, key, role, path_length, now, expires_at)
    leaf_key = certificate.new_key()
    leaf = certificate.make_leaf(permission, key, leaf_key, identity, now, expires_at)
    honest = ticket.issue(identity, now)
    pem = certificate.key_to_pem(leaf_key)
    return Credentials(pem, (leaf, permission, *honest.chain[1:]), honest.authority)


@pytest.mark.parametrize("role", list(TicketRole))
async def test_a_client_ticket_cannot_make_further_members(swarm: Swarm, role: TicketRole) -> None:
    a, _ = await swarm.add()
    rogue = Rogue(swarm.ticket(TicketRole.CLIENT), a.identity.peer, a.endpoints[0])
    rogue.credentials = forged(swarm.ticket(TicketRole.CLIENT), rogue.identity, role, 0, time.time() + 60)
    with pytest.raises(StreamBroken):
        stream = await rogue.open()
        await greet(stream, Self(rogue.identity, b"", b""), rogue.target)
    rogue.close()
    assert rogue.identity.peer not in a.network.links()


async def test_a_node_cannot_pass_for_another_one(swarm: Swarm) -> None:
    a, echo_a = await swarm.add()
    b, _ = await swarm.add()
    c, _ = await swarm.add()
    # b's record says that b is where c listens: TLS finds another name there.
    a.network.introduce(b.identity.peer, Contact(endpoints=c.endpoints))
    echo_a.ask(b.identity.peer, 1)
    await eventually(echo_a.losses)
    assert echo_a.losses() == [(b.identity.peer, f"the node at {c.endpoints[0]} is another one")]


async def test_a_ticket_holder_that_names_its_certificate_after_another_is_found_out(swarm: Swarm) -> None:
    """TLS alone would be deceived, since every ticket can sign any name: the Welcome is what proves the acceptor."""
    a, echo_a = await swarm.add()
    victim, _ = await swarm.add()
    rogue = Rogue(swarm.ticket(), a.identity.peer, a.endpoints[0])
    issuer, issuer_key = swarm.ticket().own_permission()
    key = certificate.new_key()

    class Pretender:
        """Has the victim's public key and name, and signs with its own."""

        peer, public_key, private_key = victim.identity.peer, victim.identity.public_key, rogue.identity.private_key

    now = time.time()
    leaf = certificate.make_leaf(issuer, issuer_key, key, Pretender, now, now + 60)  # type: ignore[arg-type]
    chain = to_pem([leaf, issuer, *a.ticket.chain()])
    server = grpc.aio.server()

    async def pretend(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()
        signature = bytes(64)
        public_key = victim.identity.public_key
        await context.write(
            encode_control(Welcome(version=1, link=bytes(16), public_key=public_key, signature=signature, chain=()))
        )
        await context.read()

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            return grpc.stream_stream_rpc_method_handler(pretend)

    server.add_generic_rpc_handlers((Handler(),))
    pair = certificate.key_to_pem(key), chain
    credentials = grpc.ssl_server_credentials([pair], to_pem([a.ticket.authority_certificate()]), True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        a.network.introduce(victim.identity.peer, Contact(endpoints=(f"127.0.0.1:{port}",)))
        echo_a.ask(victim.identity.peer, 1)
        await eventually(echo_a.losses)
        assert "could not prove" in echo_a.losses()[0][1]
    finally:
        await server.stop(0)
    # Nor can it call in the victim's name.
    rogue.credentials = Credentials(
        certificate.key_to_pem(key), (leaf, issuer, *a.ticket.chain()), a.ticket.authority_certificate()
    )
    with pytest.raises(StreamBroken, match="not signed by the peer"):
        stream = await rogue.open()
        await greet(stream, Self(rogue.identity, b"", b""), rogue.target)
    rogue.close()


def test_two_swarms_of_one_name_are_two() -> None:
    now = time.time()
    one, two = (SwarmAuthority.found("same", now).ticket((), now + 60, now) for _ in range(2))
    assert one.swarm == two.swarm
    assert one.swarm_id != two.swarm_id
