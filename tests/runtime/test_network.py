"""Messages between nodes in one process: order, both directions, lanes, losses, limits, counting."""

import asyncio

import psutil
import pytest

from farflung.runtime.limits import NetworkLimits
from farflung.runtime.shaped_link import shaped_link
from farflung.world.address import PeerId
from farflung.world.doors import Contact
from tests.runtime.conftest import PATIENCE_SECONDS, Swarm, eventually, introduce

pytestmark = pytest.mark.loopback

SILENT = NetworkLimits(ping_seconds=30.0, silence_seconds_max=70.0)
"""No pings while a test counts bytes or holds a link still."""


async def test_messages_arrive_in_order_and_are_answered(swarm: Swarm) -> None:
    a, echo_a = await swarm.add()
    b, echo_b = await swarm.add()
    for number in range(200):
        echo_b.ask(a.identity.peer, number, num_bytes=number * 7, num_bytes_back=number)
    await eventually(lambda: len(echo_b.answers()) == 200)
    assert echo_b.answers() == list(range(200))
    assert [entry["num_bytes"] for entry in echo_a.seen] == [number * 7 for number in range(200)]
    assert (a.network.round_trip_seconds(b.identity.peer) or 0) < 5
    assert not echo_a.losses() and not echo_b.losses()


async def test_a_node_answers_the_one_that_called_without_knowing_where_it_is(swarm: Swarm) -> None:
    a, echo_a = await swarm.add()
    b, _ = await swarm.add(is_dial_only=True)
    assert b.endpoints == ()
    assert await b.network.linked(a.identity.peer, PATIENCE_SECONDS)
    await eventually(lambda: b.identity.peer in a.network.links())
    echo_a.ask(b.identity.peer, 1)
    await eventually(lambda: echo_a.answers() == [1])


async def test_own_actors_are_reached_through_the_codec(swarm: Swarm) -> None:
    a, echo = await swarm.add()
    echo.ask(a.identity.peer, 5, num_bytes=3, num_bytes_back=4)
    assert echo.seen == [], "delivery happened inside send"
    await eventually(lambda: echo.answers() == [5])
    assert a.world.traffic.total() == 0


async def test_a_message_for_nobody_is_answered(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    _, echo = await swarm.add()
    a.network.unlisten("echo")
    echo.ask(a.identity.peer, 1)
    await eventually(lambda: {"other": "NoSuchActor", "peer": a.identity.peer} in echo.seen)


async def test_both_calling_at_once_end_up_with_one_link_and_lose_nothing(swarm: Swarm) -> None:
    nodes = [await swarm.add() for _ in range(4)]
    for node, _ in nodes:
        for other, _ in nodes:
            if node is not other:
                introduce(node, other)
    for number in range(20):
        for node, echo in nodes:
            for other, _ in nodes:
                if node is not other:
                    echo.ask(other.identity.peer, number)
    for node, echo in nodes:
        await eventually(lambda echo=echo: len(echo.answers()) == 60)
        assert not echo.losses()
        for other, _ in nodes:
            answers = [e["answer"] for e in echo.seen if "answer" in e and e["peer"] == other.identity.peer]
            assert answers == (list(range(20)) if other is not node else [])
        assert len(node.network.links()) == 3


async def test_a_large_message_arrives_whole_and_the_small_one_after_it_first(swarm: Swarm) -> None:
    a, echo_a = await swarm.add()
    b, echo_b = await swarm.add()
    port = int(a.endpoints[0].rsplit(":", 1)[1])
    async with shaped_link(port, bytes_per_second=8e6, one_way_seconds=0.005) as link:
        introduce(b, a, f"127.0.0.1:{link.port}")
        echo_b.ask(a.identity.peer, 0)
        await eventually(lambda: echo_b.answers() == [0])
        for number, num_bytes in ((1, 6 << 20), (2, 0), (3, 0), (4, 0), (5, 0)):
            echo_b.ask(a.identity.peer, number, num_bytes=num_bytes)
        await eventually(lambda: len(echo_b.answers()) == 6)
        assert echo_b.answers() == [0, 2, 3, 4, 5, 1], "small messages waited for a large one"
        assert {"got": 1, "num_bytes": 6 << 20, "peer": b.identity.peer} in echo_a.seen
        rate = b.network.bytes_per_second(a.identity.peer)
        assert rate is not None and 0 < rate < 9e6


async def test_large_messages_go_both_ways_over_the_lanes_of_the_side_that_dialled(swarm: Swarm) -> None:
    a, echo_a = await swarm.add()
    _, echo_b = await swarm.add(is_dial_only=True)
    for number in range(3):
        echo_b.ask(a.identity.peer, number, num_bytes=3 << 20, num_bytes_back=5 << 20)
    await eventually(lambda: sorted(map(str, echo_b.answers())) == ["0", "1", "2"])
    assert {entry["num_bytes"] for entry in echo_a.seen} == {3 << 20}
    assert {entry["num_bytes"] for entry in echo_b.seen} == {5 << 20}


async def test_a_peer_that_cannot_be_called_is_lost_at_once_and_one_nobody_knows_soon(swarm: Swarm) -> None:
    await swarm.add()
    b, echo = await swarm.add()
    nobody, unknown = PeerId("a" * 52), PeerId("b" * 52)
    b.network.introduce(nobody, Contact(endpoints=("127.0.0.1:9",)))
    echo.ask(nobody, 1)
    echo.ask(nobody, 2)
    assert echo.losses() == []
    await eventually(echo.losses)
    assert echo.losses() == [(nobody, "nobody listens at 127.0.0.1:9")]
    echo.ask(unknown, 3)
    await eventually(lambda: len(echo.losses()) == 2)
    assert echo.losses()[1] == (unknown, "no address of it is known, and it has not called")


async def test_a_cut_link_is_lost_once_and_made_again(swarm: Swarm) -> None:
    a, echo_a = await swarm.add()
    b, echo_b = await swarm.add()
    async with shaped_link(int(a.endpoints[0].rsplit(":", 1)[1])) as link:
        introduce(b, a, f"127.0.0.1:{link.port}")
        b.network.keep(a.identity.peer)
        assert await b.network.linked(a.identity.peer, PATIENCE_SECONDS)
        for round_number in range(1, 4):
            link.reset()
            await eventually(lambda number=round_number: len(echo_b.losses()) == number)
            assert await b.network.linked(a.identity.peer, PATIENCE_SECONDS)
            await eventually(lambda number=round_number: len(echo_a.losses()) == number)
            echo_b.ask(a.identity.peer, round_number)
            await eventually(lambda number=round_number: number in echo_b.answers())
    assert len(echo_b.losses()) == 3


async def test_a_link_that_hangs_is_lost_by_both_sides_when_silent_too_long(swarm: Swarm) -> None:
    limits = NetworkLimits(ping_seconds=0.3, silence_seconds_max=3.0)
    a, echo_a = await swarm.add(limits=limits)
    b, echo_b = await swarm.add(limits=limits)
    async with shaped_link(int(a.endpoints[0].rsplit(":", 1)[1])) as link:
        introduce(b, a, f"127.0.0.1:{link.port}")
        echo_b.ask(a.identity.peer, 1)
        await eventually(lambda: echo_b.answers() == [1])
        link.stall()
        reason = "no sign of life for 3 seconds"
        await eventually(lambda: echo_b.losses() == [(a.identity.peer, reason)])
        await eventually(lambda: echo_a.losses() == [(b.identity.peer, reason)])


async def test_a_peer_that_takes_too_slowly_is_lost_instead_of_filling_memory(swarm: Swarm) -> None:
    limits = NetworkLimits(urgent_queue_bytes_max=1 << 20, bulk_queue_bytes_max=8 << 20)
    a, _ = await swarm.add()
    b, echo_b = await swarm.add(limits=limits)
    async with shaped_link(int(a.endpoints[0].rsplit(":", 1)[1])) as link:
        introduce(b, a, f"127.0.0.1:{link.port}")
        echo_b.ask(a.identity.peer, 0)
        await eventually(lambda: echo_b.answers() == [0])
        link.stall()
        for number in range(1, 40):
            echo_b.ask(a.identity.peer, number, num_bytes=100_000)
        await eventually(echo_b.losses)
        assert "too slowly" in echo_b.losses()[0][1]
        assert len(echo_b.losses()) == 1


async def test_a_peer_that_connects_anew_replaces_its_dead_link(swarm: Swarm) -> None:
    a, echo_a = await swarm.add(limits=SILENT)
    b, echo_b = await swarm.add(limits=NetworkLimits(ping_seconds=0.3, silence_seconds_max=3.0))
    async with shaped_link(int(a.endpoints[0].rsplit(":", 1)[1])) as link:
        introduce(b, a, f"127.0.0.1:{link.port}")
        echo_b.ask(a.identity.peer, 1)
        await eventually(lambda: echo_b.answers() == [1])
        link.stall()
        await eventually(lambda: len(echo_b.losses()) == 1)
        assert echo_a.losses() == []
        introduce(b, a)
        echo_b.ask(a.identity.peer, 2)
        await eventually(lambda: 2 in echo_b.answers())
        assert echo_a.losses() == [(b.identity.peer, "it connected anew")]
        echo_a.ask(b.identity.peer, 3)
        await eventually(lambda: echo_a.answers() == [3])


async def test_a_link_that_ends_leaves_no_connection_behind(swarm: Swarm) -> None:
    a, _ = await swarm.add()
    b, echo_b = await swarm.add()
    port = int(a.endpoints[0].rsplit(":", 1)[1])

    def connections() -> int:
        return sum(bool(each.raddr) and each.raddr.port == port for each in psutil.Process().net_connections("tcp"))

    echo_b.ask(a.identity.peer, 1, num_bytes=3 << 20)
    await eventually(lambda: echo_b.answers() == [1])
    await eventually(lambda: connections() == 1 + NetworkLimits().num_bulk_lanes)
    await b.network.drop(a.identity.peer)
    await eventually(lambda: connections() == 0)


async def test_bytes_are_counted_as_they_are_on_the_wire(swarm: Swarm) -> None:
    a, _ = await swarm.add(limits=SILENT)
    b, echo_b = await swarm.add(limits=SILENT)
    async with shaped_link(int(a.endpoints[0].rsplit(":", 1)[1])) as link:
        introduce(b, a, f"127.0.0.1:{link.port}")
        echo_b.ask(a.identity.peer, 0)
        await eventually(lambda: echo_b.answers() == [0])
        await eventually(lambda: b.world.traffic.total(kind="Pong", sent=False) > 0)
        up, down, counted = dict(link.num_bytes)["up"], dict(link.num_bytes)["down"], b.world.traffic.total()
        for number in range(1, 21):
            echo_b.ask(a.identity.peer, number, num_bytes=50_000, num_bytes_back=20_000)
        echo_b.ask(a.identity.peer, 21, num_bytes=4 << 20)
        await eventually(lambda: len(echo_b.answers()) == 22)
        peer = a.identity.peer
        wire = link.num_bytes["up"] - up + link.num_bytes["down"] - down
        counted = b.world.traffic.total(peer=peer) - counted
        # TLS records, HTTP/2 frames and window updates, and the handshakes of four bulk lanes.
        assert counted < wire < counted * 1.02 + 4 * 12_000
        sent = b.world.traffic.total(peer=peer, kind="RuntimeQuestion", sent=True)
        assert sent == a.world.traffic.total(peer=b.identity.peer, kind="RuntimeQuestion", sent=False)
        assert 0 <= sent - (20 * 50_000 + (4 << 20)) < 22 * 100 + 5 * 200
        assert b.world.traffic.num_messages[peer, "RuntimeQuestion", True] == 22


async def test_an_actor_that_fails_costs_nobody_else_anything(swarm: Swarm, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def deliver(self, source: object, message: object) -> None:
            raise RuntimeError("planted")

        def lost(self, peer: PeerId, reason: str) -> None:
            raise RuntimeError("planted")

    a, echo_a = await swarm.add()
    b, echo_b = await swarm.add()
    a.network.unlisten("echo")
    a.network.listen("echo", Broken())
    a.network.listen("second", echo_a)
    echo_b.ask(a.identity.peer, 1)
    await eventually(lambda: "actor echo failed" in caplog.text)
    assert b.identity.peer in a.network.links()
    await b.network.close()
    await eventually(lambda: echo_a.losses() == [(b.identity.peer, "it left")])


async def test_a_closed_node_sends_nothing_and_its_peers_hear_that_it_left(swarm: Swarm) -> None:
    a, echo_a = await swarm.add()
    b, echo_b = await swarm.add()
    echo_b.ask(a.identity.peer, 1)
    await eventually(lambda: echo_b.answers() == [1])
    await b.network.close()
    await eventually(lambda: echo_a.losses() == [(b.identity.peer, "it left")])
    echo_b.ask(a.identity.peer, 2)
    await asyncio.sleep(0)
    assert a.network.links() == {}
