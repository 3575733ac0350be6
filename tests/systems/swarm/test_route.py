"""Routes: the search against exhaustive enumeration with costs written down once more, and what each cost does."""

import itertools
import sys
from collections.abc import Iterator, Mapping
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farflung.systems.swarm import route as route_module
from farflung.systems.swarm import route_costs
from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.systems.swarm.messages import Hop
from farflung.systems.swarm.route import MissingBlocks, Route, best_route, throughput_route
from farflung.systems.swarm.route_costs import RouteConfig
from farflung.world.address import PeerId

CONFIG = RouteConfig()
A, B, C, D = (PeerId(name) for name in "abcd")
ROOMY = 10**6


def info(first: int, last: int, **changes: object) -> ServerInfo:
    settings: dict[str, object] = {
        "state": ServerState.ONLINE,
        "blocks_per_second": 1000.0,
        "forward_tokens_per_second": 10_000.0,
        "cache_tokens_left": ROOMY,
    } | changes
    return ServerInfo(
        model="m",
        model_name="m",
        blocks=BlockRange(first, last),
        cache_tokens_max=ROOMY,
        dtype="float32",
        started_at=0.0,
        version="1",
        **settings,
    )


def find(
    servers: Mapping[PeerId, ServerInfo], client: Mapping[PeerId, float] | None = None, last: int = 8, **changes: object
) -> Route:
    settings: dict[str, object] = {"tokens_needed": 100, "config": CONFIG} | changes
    found = best_route(servers, dict.fromkeys(servers, 0.01) if client is None else client, 0, last, **settings)
    assert isinstance(found, Route)
    assert len(found.reasons) == len(found.hops)
    assert all(found.reasons)
    return found


# ---- the same costs, written down a second time


def way(servers: Mapping[PeerId, ServerInfo], here: PeerId, there: PeerId) -> float:
    if here == there:
        return 0.0
    known = servers[here].round_trip_seconds.get(there) if here in servers else None
    if known is None and there in servers:
        known = servers[there].round_trip_seconds.get(here)
    return (CONFIG.unknown_round_trip_seconds if known is None else known) / 2


def hop_seconds(
    one: ServerInfo, num_blocks: int, tokens_needed: int, tokens_so_far: int, token_seconds: float
) -> float:
    job_seconds = one.job_seconds if one.job_seconds is not None else one.blocks.num_blocks / one.blocks_per_second
    seconds = CONFIG.hop_seconds + num_blocks / one.blocks_per_second + one.queue_length * job_seconds
    if tokens_needed * num_blocks > one.cache_tokens_left * one.blocks.num_blocks:
        seconds += CONFIG.full_cache_seconds
    replay_seconds = CONFIG.replacement_seconds + tokens_so_far * num_blocks / one.forward_tokens_per_second
    return seconds + one.leave_probability_per_second * token_seconds * replay_seconds


def all_routes(servers: Mapping[PeerId, ServerInfo], first: int, last: int) -> Iterator[tuple[Hop, ...]]:
    if first == last:
        yield ()
        return
    for peer, one in servers.items():
        if one.blocks.contains(first):
            for end in range(first + 1, min(one.blocks.last, last) + 1):
                for rest in all_routes(servers, end, last):
                    if not rest or rest[0].peer != peer:
                        yield (Hop(peer, first, end), *rest)


def seconds_of(
    hops: tuple[Hop, ...],
    servers: Mapping[PeerId, ServerInfo],
    client: Mapping[PeerId, float],
    ends: tuple[PeerId | None, PeerId | None],
    needs: tuple[int, int, float],
) -> float:
    def end(server: PeerId, other: PeerId | None, *, is_entry: bool) -> float:
        if other is None:
            return client.get(server, CONFIG.unknown_round_trip_seconds) / 2
        return way(servers, other, server) if is_entry else way(servers, server, other)

    total = end(hops[0].peer, ends[0], is_entry=True) + end(hops[-1].peer, ends[1], is_entry=False)
    total += sum(way(servers, one.peer, following.peer) for one, following in itertools.pairwise(hops))
    return total + sum(hop_seconds(servers[hop.peer], hop.last - hop.first, *needs) for hop in hops)


PEERS = (A, B, C, D)


@st.composite
def swarms(draw: st.DrawFn) -> tuple[dict[PeerId, ServerInfo], dict[PeerId, float], int]:
    """Up to four servers that cover up to five blocks, with partly unknown round trips."""
    num_blocks = draw(st.integers(1, 5))
    seconds = st.sampled_from([0.001, 0.01, 0.02, 0.1])
    servers: dict[PeerId, ServerInfo] = {}
    for peer in PEERS[: draw(st.integers(1, 4))]:
        first = draw(st.integers(0, num_blocks - 1))
        servers[peer] = info(
            first,
            draw(st.integers(first + 1, num_blocks)),
            blocks_per_second=draw(st.sampled_from([20.0, 100.0, 1000.0])),
            forward_tokens_per_second=draw(st.sampled_from([100.0, 1000.0])),
            queue_length=draw(st.integers(0, 2)),
            job_seconds=draw(st.sampled_from([None, 0.005])),
            cache_tokens_left=draw(st.sampled_from([0, 30, 60, ROOMY])),
            leave_probability_per_second=draw(st.sampled_from([0.0, 0.0, 0.01])),
            round_trip_seconds=draw(st.dictionaries(st.sampled_from(PEERS), seconds, max_size=3)),
        )
    for block in range(num_blocks):
        if not any(one.blocks.contains(block) for one in servers.values()):
            servers[A] = msgspec.structs.replace(servers[A], blocks=BlockRange(0, num_blocks))
    return servers, draw(st.dictionaries(st.sampled_from(PEERS), seconds)), num_blocks


@given(swarms(), st.sampled_from([None, A, PeerId("elsewhere")]), st.sampled_from([None, B]), st.sampled_from([0, 500]))
def test_route_is_the_best_of_all(
    drawn: tuple[dict[PeerId, ServerInfo], dict[PeerId, float], int],
    previous: PeerId | None,
    following: PeerId | None,
    tokens_so_far: int,
) -> None:
    servers, client, num_blocks = drawn
    ends = (previous, following)

    def best(token_seconds: float) -> float:
        needs = (40, tokens_so_far, token_seconds)
        return min(seconds_of(hops, servers, client, ends, needs) for hops in all_routes(servers, 0, num_blocks))

    token_seconds = best(0.0)
    found = find(
        servers,
        client,
        num_blocks,
        tokens_needed=40,
        tokens_so_far=tokens_so_far,
        previous=previous,
        following=following,
    )
    assert found.seconds_per_token == pytest.approx(best(token_seconds))
    needs = (40, tokens_so_far, token_seconds)
    assert seconds_of(found.hops, servers, client, ends, needs) == pytest.approx(found.seconds_per_token)
    assert [hop.first for hop in found.hops] == [0, *(hop.last for hop in found.hops[:-1])]
    assert found.hops[-1].last == num_blocks


@given(swarms())
def test_hop_per_block_is_the_best_of_all_assignments(
    drawn: tuple[dict[PeerId, ServerInfo], dict[PeerId, float], int],
) -> None:
    servers, client, num_blocks = drawn
    found = find(servers, client, num_blocks, tokens_needed=40, is_hop_per_block=True)
    assert [(hop.first, hop.last) for hop in found.hops] == [(block, block + 1) for block in range(num_blocks)]
    holders = [[peer for peer, one in servers.items() if one.blocks.contains(block)] for block in range(num_blocks)]
    plain = {peer: msgspec.structs.replace(one, leave_probability_per_second=0.0) for peer, one in servers.items()}
    best = min(
        seconds_of(
            tuple(Hop(peer, block, block + 1) for block, peer in enumerate(peers)),
            plain,
            client,
            (None, None),
            (40, 0, 0.0),
        )
        for peers in itertools.product(*holders)
    )
    free = find(plain, client, num_blocks, tokens_needed=40, is_hop_per_block=True)
    assert free.seconds_per_token == pytest.approx(best)


@given(swarms(), st.data())
def test_more_servers_and_faster_ones_never_slow_a_route(
    drawn: tuple[dict[PeerId, ServerInfo], dict[PeerId, float], int], data: st.DataObject
) -> None:
    servers, client, num_blocks = drawn
    plain = {peer: msgspec.structs.replace(one, leave_probability_per_second=0.0) for peer, one in servers.items()}
    before = find(plain, client, num_blocks).seconds_per_token
    chosen = data.draw(st.sampled_from(list(plain)))
    doubled = 2 * plain[chosen].blocks_per_second
    faster = plain | {chosen: msgspec.structs.replace(plain[chosen], blocks_per_second=doubled)}
    newcomer = plain | {PeerId("newcomer"): info(0, num_blocks)}
    assert find(faster, client, num_blocks).seconds_per_token <= before + 1e-12
    assert find(newcomer, client, num_blocks).seconds_per_token <= before + 1e-12


# ---- what each cost does


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

    def trace(frame, event, argument):  # noqa: ANN202
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
