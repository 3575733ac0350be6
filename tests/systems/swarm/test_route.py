"""Routes: what each cost does to them, routes for training, and how much work a search is."""

import sys
from random import Random
from typing import Any

import pytest

from farflung.systems.swarm import route as route_module
from farflung.systems.swarm import route_costs
from farflung.systems.swarm.info import BlockRange, ServerState
from farflung.systems.swarm.messages import Hop
from farflung.systems.swarm.route import MissingBlocks, Route, best_route, throughput_route
from farflung.world.address import PeerId
from tests.systems.swarm.routes import CONFIG, A, B, C, D, find, info


def test_one_near_server_beats_a_chain_and_the_reason_says_what_it_costs() -> None:
    found = find({A: info(0, 8), B: info(0, 4), C: info(4, 8)})
    assert found.hops == (Hop(A, 0, 8),)
    assert found.seconds_per_token == pytest.approx(0.01 + 0.0015 + 0.008)
    assert found.reasons == ("19.5 ms per token, 10 of them on the way; no other server holds all these blocks",)


def test_reason_names_the_next_best() -> None:
    found = find({A: info(0, 8), B: info(0, 8)}, {A: 0.01, B: 0.02})
    assert found.reasons == ("19.5 ms per token, 10 of them on the way; next best b with 29.5 ms",)


def test_server_is_entered_and_left_inside_its_range() -> None:
    near = dict.fromkeys((A, B, C), 0.001)
    servers = {
        A: info(0, 6, blocks_per_second=10.0, round_trip_seconds=near),
        B: info(2, 8, round_trip_seconds=near),
        C: info(0, 2, round_trip_seconds=near),
    }
    assert find(servers, near).hops == (Hop(C, 0, 2), Hop(B, 2, 8))
    slow = servers | {C: info(0, 1, round_trip_seconds=near)}
    assert find(slow, near).hops == (Hop(C, 0, 1), Hop(A, 1, 2), Hop(B, 2, 8))


def test_waiting_jobs_send_a_client_elsewhere() -> None:
    idle, busy = info(0, 8), info(0, 8, queue_length=3)
    assert find({A: busy, B: idle}, {A: 0.01, B: 0.02}).hops[0].peer == B
    quick = info(0, 8, queue_length=3, job_seconds=0.001)
    assert find({A: quick, B: idle}, {A: 0.01, B: 0.02}).hops[0].peer == A


def test_full_cache_is_avoided_while_there_is_another() -> None:
    full, free = info(0, 8, cache_tokens_left=50), info(0, 8)
    assert find({A: full, B: free}, {A: 0.001, B: 0.1}).hops == (Hop(B, 0, 8),)
    assert find({A: full, B: free}, {A: 0.001, B: 0.1}, tokens_needed=50).hops == (Hop(A, 0, 8),)
    assert find({A: full}, {A: 0.001}).seconds_per_token > CONFIG.full_cache_seconds


def test_half_a_span_needs_half_of_the_cache() -> None:
    near = {A: 0.001, B: 0.001}
    servers = {A: info(0, 8, cache_tokens_left=50), B: info(4, 8, round_trip_seconds=near)}
    assert find(servers, near).hops == (Hop(A, 0, 4), Hop(B, 4, 8))


def test_long_sessions_avoid_servers_that_often_leave() -> None:
    fickle, steady = info(0, 8, leave_probability_per_second=0.01), info(0, 8)
    client = {A: 0.010, B: 0.012}
    assert find({A: fickle, B: steady}, client, tokens_so_far=10).hops[0].peer == A
    assert find({A: fickle, B: steady}, client, tokens_so_far=100_000).hops[0].peer == B


def test_replacement_stays_near_its_neighbours_in_the_chain() -> None:
    near_chain = info(2, 6, round_trip_seconds={C: 0.002, D: 0.002})
    near_client = info(2, 6)
    servers = {A: near_client, B: near_chain}
    found = best_route(
        servers, {A: 0.001, B: 0.3}, 2, 6, tokens_needed=100, previous=C, following=D, config=CONFIG
    )  # fmt: skip
    assert isinstance(found, Route)
    assert found.hops == (Hop(B, 2, 6),)


def test_equal_routes_go_to_the_smaller_peer_id_whatever_the_order() -> None:
    servers = {peer: info(0, 8) for peer in (C, A, B)}
    assert find(servers).hops == (Hop(A, 0, 8),)
    assert find(dict(reversed(servers.items()))) == find(servers)


@pytest.mark.parametrize("state", [ServerState.JOINING, ServerState.DRAINING])
def test_servers_that_take_no_sessions_are_not_used(state: ServerState) -> None:
    found = best_route({A: info(0, 8, state=state)}, {}, 0, 8, tokens_needed=1)
    assert found == MissingBlocks((BlockRange(0, 8),))


def test_missing_blocks_are_named() -> None:
    servers = {A: info(1, 3), B: info(2, 5), C: info(7, 9)}
    for found in (
        best_route(servers, {}, 0, 10, tokens_needed=1),
        throughput_route(servers, 0, 10, uniform=Random(0).random),
    ):
        assert found == MissingBlocks((BlockRange(0, 1), BlockRange(5, 7), BlockRange(9, 10)))
        assert str(found) == (
            "No server that takes sessions holds blocks 0:1 and 5:7 and 9:10; start one with --blocks 0:1."
        )
    assert isinstance(best_route(servers, {}, 1, 5, tokens_needed=1), Route)


# ---- training


def test_training_routes_spread_load_by_speed_and_queue() -> None:
    servers = {
        A: info(0, 8, forward_tokens_per_second=3000.0),
        B: info(0, 8, forward_tokens_per_second=2000.0, queue_length=1),
        C: info(4, 8, forward_tokens_per_second=1000.0),
    }
    random = Random(0)
    counts = dict.fromkeys(servers, 0)
    for _ in range(4000):
        found = throughput_route(servers, 0, 8, uniform=random.random)
        assert isinstance(found, Route)
        counts[found.hops[0].peer] += 1
    assert counts[A] / 4000 == pytest.approx(0.75, abs=0.03)
    assert counts[C] == 0


@pytest.mark.parametrize("number", [0.0, 0.5, 0.999999999])
def test_training_routes_are_whole(number: float) -> None:
    servers = {A: info(0, 5), B: info(3, 8), C: info(2, 6)}
    found = throughput_route(servers, 1, 7, uniform=lambda: number)
    assert isinstance(found, Route)
    assert [hop.first for hop in found.hops] == [1, *(hop.last for hop in found.hops[:-1])]
    assert found.hops[-1].last == 7
    assert len(found.reasons) == len(found.hops)


# ---- how much work


def lines_run(num_servers: int, num_blocks: int) -> int:
    """Lines of the two route modules that one search of a large swarm runs."""
    random = Random(0)
    peers = [PeerId(f"p{index:03}") for index in range(num_servers)]
    servers = {}
    for index, peer in enumerate(peers):
        size = random.randint(4, 20)
        first = (index * 7) % (num_blocks - size)
        times = {other: random.uniform(0.001, 0.1) for other in random.sample(peers, 10)}
        servers[peer] = info(first, first + size, round_trip_seconds=times, leave_probability_per_second=1e-4)
    servers[PeerId("whole")] = info(0, num_blocks, blocks_per_second=1.0)
    modules = {route_module.__file__, route_costs.__file__}
    count = 0

    def trace(frame: Any, event: str, argument: Any):  # noqa: ANN202
        nonlocal count
        if frame.f_code.co_filename not in modules:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        best_route(servers, {}, 0, num_blocks, tokens_needed=100, tokens_so_far=100)
    finally:
        sys.settrace(before)
    return count


def test_work_grows_with_blocks_plus_servers_not_with_their_product() -> None:
    """The search is some array operations per block; a line costs about a microsecond to 30, so 20 ms hold."""
    base = lines_run(50, 40)
    assert lines_run(100, 80) < 2.5 * base
    assert lines_run(100, 80) < 10_000
