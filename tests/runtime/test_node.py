"""Opening a node: what is refused, where it listens, what its ticket and home give it."""

import time
from pathlib import Path

import pytest

from farflung.runtime.node import open_node
from farflung.wire.certificate import TicketRole
from farflung.wire.ticket import Ticket
from tests.runtime.conftest import Swarm

pytestmark = pytest.mark.loopback


async def test_a_port_in_use_is_said_so(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    port = int(a.endpoints[0].rsplit(":", 1)[1])
    with pytest.raises(ValueError, match=rf"cannot listen on 127\.0\.0\.1:{port}: the port is in use"):
        await swarm.add(port=port)
    with pytest.raises(ValueError, match="address is not this machine's"):
        await open_node(ticket=swarm.ticket(), home=swarm.nodes[0].home.folder / "other", host="192.0.2.1")


async def test_a_home_in_use_is_said_so_and_a_failed_opening_leaves_it_free(swarm: Swarm, tmp_path: Path) -> None:
    a, _ = await swarm.add()
    with pytest.raises(ValueError, match="another node lives in"):
        await open_node(ticket=swarm.ticket(), home=a.home.folder)
    port = int(a.endpoints[0].rsplit(":", 1)[1])
    for _ in range(2):
        with pytest.raises(ValueError, match="the port is in use"):
            await open_node(ticket=swarm.ticket(), home=tmp_path / "again", port=port)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "give a ticket to join a swarm, or a name to found one"),
        ({"new_swarm": "x", "ticket": "farflung1"}, "not both"),
        ({"ticket": "nonsense"}, "this is not a ticket"),
        ({"ticket": "farflung1nonsense"}, "damaged"),
        ({"new_swarm": "x", "is_dial_only": True}, "must accept calls"),
        ({"new_swarm": ""}, "1 to 60 characters"),
    ],
)
async def test_contradictions_are_refused(tmp_path: Path, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        await open_node(home=tmp_path, **arguments)  # type: ignore[arg-type]


async def test_a_founder_comes_back_to_its_own_swarm(tmp_path: Path) -> None:
    first = await open_node(new_swarm="mine", home=tmp_path)
    await first.close()
    again = await open_node(new_swarm="mine", home=tmp_path)
    assert (again.identity.peer, again.ticket.swarm_id) == (first.identity.peer, first.ticket.swarm_id)
    assert again.role is TicketRole.ADMIN
    await again.close()
    other = await open_node(new_swarm="another", home=tmp_path)
    assert other.ticket.swarm_id != first.ticket.swarm_id
    await other.close()


async def test_a_founders_ticket_leads_to_it(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    parsed = Ticket.parse(swarm.ticket(TicketRole.CLIENT).text(), time.time())
    assert [(m.peer, m.endpoints) for m in parsed.meetings] == [(a.identity.peer, a.endpoints)]


async def test_what_is_advertised_is_what_others_are_told(tmp_path: Path) -> None:
    node = await open_node(new_swarm="x", home=tmp_path / "a", advertise=("example.org:4000",))
    assert node.endpoints == ("example.org:4000",)
    await node.close()
    node = await open_node(new_swarm="x", home=tmp_path / "b", host="0.0.0.0")
    assert node.endpoints and not any(endpoint.startswith("0.") for endpoint in node.endpoints)
    await node.close()


async def test_streams_of_randomness_are_apart_by_purpose(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    assert a.world.random("x") is a.world.random("x")
    assert a.world.random("x").random() != a.world.random("y").random()
