"""The search for routes against exhaustive enumeration, with all costs written down a second time."""

import itertools
from collections.abc import Iterator, Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farflung.systems.swarm.info import BlockRange, ServerInfo
from farflung.systems.swarm.messages import Hop
from farflung.world.address import PeerId
from tests.systems.swarm.routes import CONFIG, ROOMY, A, B, C, D, find, info


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
