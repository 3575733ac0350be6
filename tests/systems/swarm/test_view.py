"""What a client knows of its swarm: bans grow and end, waiting tells how it goes, and NoRoute names the blocks."""

import pytest

from farflung.systems.swarm.info import ServerState
from farflung.systems.swarm.messages import Hop
from farflung.systems.swarm.route import Route
from farflung.systems.swarm.view import BAN_SECONDS_MAX, NoRoute
from farflung.world.address import PeerId
from farflung.world.mailbox import Mailbox
from tests.swarms import CLIENT, SimulatedSwarm, SmallModel

A1, A2, B1 = PeerId("a1"), PeerId("a2"), PeerId("b1")
SERVERS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 4)}


def find(swarm: SimulatedSwarm, wait_seconds_max: float) -> list[PeerId]:
    """The servers of a chain for the whole model."""

    async def look() -> list[PeerId]:
        with Mailbox(swarm.view.world, "looker") as mailbox:
            hops = await swarm.view.find_hops(
                mailbox,
                0,
                4,
                num_tokens=1,
                num_positions=0,
                is_hop_per_block=False,
                wait_seconds_max=wait_seconds_max,
            )
        return [hop.peer for hop in hops]

    return swarm.simulation.run(look(), node=CLIENT)


def test_only_servers_of_the_model_that_take_sessions_count(small: SmallModel) -> None:
    with SimulatedSwarm(small, SERVERS) as swarm:
        swarm.roles["a1"].state = ServerState.DRAINING
        assert list(swarm.view.servers()) == [A2, B1]
        swarm.view.model = "another"
        assert swarm.view.servers() == {}


def test_who_is_asked_already_comes_after_an_equal_one(small: SmallModel) -> None:
    with SimulatedSwarm(small, SERVERS) as swarm:
        assert find(swarm, 0.0) == [A1, B1]
        first = swarm.view.route(0, 4, num_tokens=0)
        assert isinstance(first, Route)
        with swarm.view.under_way(first.hops):
            assert find(swarm, 0.0) == [A2, B1]
            with swarm.view.under_way([Hop(A2, 0, 2)]):
                assert find(swarm, 0.0) == [A1, B1]
        assert find(swarm, 0.0) == [A1, B1]


def test_a_ban_grows_with_every_failure_and_is_forgotten_after_good_conduct(small: SmallModel) -> None:
    with SimulatedSwarm(small, SERVERS) as swarm:
        lengths: list[float] = []
        for _ in range(7):
            swarm.view.ban(A1, "it fails", 15.0)
            began_at = swarm.simulation.now()
            while A1 in swarm.view.banned():
                swarm.simulation.advance(1.0)
            lengths.append(swarm.simulation.now() - began_at)
        assert lengths == pytest.approx([15.0, 30.0, 60.0, 120.0, 240.0, BAN_SECONDS_MAX, BAN_SECONDS_MAX], abs=1.0)
        swarm.simulation.advance(BAN_SECONDS_MAX + 1.0)
        swarm.view.ban(A1, "it fails", 15.0)
        swarm.simulation.advance(15.5)
        assert A1 not in swarm.view.banned()


def test_a_banned_server_is_avoided_while_another_holds_its_blocks(small: SmallModel) -> None:
    with SimulatedSwarm(small, SERVERS) as swarm:
        swarm.view.ban(A1, "it failed", 15.0)
        assert find(swarm, 1.0) == [A2, B1]
        assert swarm.simulation.now() < 0.1


def test_a_banned_server_that_alone_holds_blocks_is_tried_again_soon(small: SmallModel) -> None:
    with SimulatedSwarm(small, SERVERS) as swarm:
        swarm.view.ban(B1, "it failed", 15.0)
        assert find(swarm, 10.0) == [A1, B1]
        assert 0.9 < swarm.simulation.now() < 2.0


def test_waiting_tells_what_is_missing_and_how_long_it_still_waits(small: SmallModel) -> None:
    told: list[tuple[str, float]] = []
    with SimulatedSwarm(small, {"a1": (0, 2), "b1": (3, 4)}) as swarm:
        swarm.view.on_wait = lambda sentence, seconds_left: told.append((sentence, seconds_left))
        with pytest.raises(NoRoute) as error:
            find(swarm, 5.0)
        assert 5.0 <= swarm.simulation.now() < 5.5
    sentence = "No server that takes sessions holds blocks 2:3; start one with --blocks 2:3."
    assert str(error.value) == sentence
    assert {said for said, _ in told} == {sentence}
    assert [left for _, left in told] == sorted((left for _, left in told), reverse=True)
    assert told[0][1] == 5.0 and 10 < len(told) < 30


def test_no_route_says_who_failed_lately_and_why(small: SmallModel) -> None:
    with SimulatedSwarm(small, SERVERS) as swarm:
        swarm.view.ban(B1, "it broke the protocol", 600.0)
        with pytest.raises(NoRoute, match=r"blocks 2:4; .* failed lately: b1 \(it broke the protocol\)\.$"):
            find(swarm, 2.0)


def test_names_are_long_and_never_repeat(small: SmallModel) -> None:
    with SimulatedSwarm(small, SERVERS) as swarm, SimulatedSwarm(small, SERVERS, seed=1) as other:
        names = [view.new_name() for view in (swarm.view, other.view) for _ in range(100)]
    assert len(set(names)) == 200 and {len(name) for name in names} == {32}


def test_a_hop_per_block_shows_every_block(small: SmallModel) -> None:
    with SimulatedSwarm(small, SERVERS) as swarm:
        route = swarm.view.route(0, 4, num_tokens=1, is_hop_per_block=True)
        assert isinstance(route, Route) and [hop.first for hop in route.hops] == [0, 1, 2, 3]
