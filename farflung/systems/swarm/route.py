"""The chain of servers by which a client's tokens travel fastest: exact, and with a reason for every hop.

A route enters and leaves a server at any block of its range, and outputs are pushed from server to server. Expected
seconds per token are the sum of

    one-way time client -> first server, server -> server, last server -> client
    per hop: handling, blocks / speed, jobs waiting * their mean time, a penalty if the cache lacks room,
    and chance to leave * time of a token * seconds that replaying the tokens so far on a replacement would take.

The cache and replay terms depend on how many blocks a hop takes, so the search goes over whole hops: for each block in
order, the best arrival at every server that holds it, then every block at which the token may leave that server again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.systems.swarm.messages import Hop
from farflung.systems.swarm.route_costs import RouteConfig, RouteCosts, Seconds
from farflung.world.address import PeerId


@dataclass(frozen=True, slots=True)
class Route:
    """A chain for a range of blocks, without gaps and in order."""

    hops: tuple[Hop, ...]
    seconds_per_token: float
    """Expected time of one decode step."""
    reasons: tuple[str, ...]
    """Why each hop was taken."""


@dataclass(frozen=True, slots=True)
class MissingBlocks:
    """There is no route: no server in sight holds these blocks."""

    ranges: tuple[BlockRange, ...]

    def __str__(self) -> str:
        named = " and ".join(str(blocks) for blocks in self.ranges)
        return f"No server that takes sessions holds blocks {named}; start one with --blocks {self.ranges[0]}."


def best_route(
    servers: Mapping[PeerId, ServerInfo],
    client_round_trip_seconds: Mapping[PeerId, float],
    first: int,
    last: int,
    *,
    tokens_needed: int,
    tokens_so_far: int = 0,
    previous: PeerId | None = None,
    following: PeerId | None = None,
    is_hop_per_block: bool = False,
    config: RouteConfig | None = None,
) -> Route | MissingBlocks:
    """The route through blocks [first, last) with the least expected seconds per token.

    `tokens_needed` is the cache the session may grow to and `tokens_so_far` what it holds, both positions times batch.
    To replace a dead part of a chain, name the servers before (`previous`) and after it (`following`); None stands for
    the client. With `is_hop_per_block` every hop is one block, so that the client sees all hidden states; the cache is
    then counted hop by hop.
    Only servers that are online count; leave out those to be avoided. Equal routes: the smaller peer id wins.
    """
    assert 0 <= first < last, (first, last)
    online = usable(servers, first, last)
    missing = missing_blocks(online, first, last)
    if missing is not None:
        return missing
    config = config or RouteConfig()
    costs = RouteCosts(online, client_round_trip_seconds, first, last, previous, following, config)
    hop_costs_PK = costs.hop_costs(tokens_needed)
    seconds, hops = _search(costs, hop_costs_PK, is_hop_per_block)
    risks_PK = costs.replay_risks(tokens_so_far, seconds)
    if risks_PK.any():
        hop_costs_PK = hop_costs_PK + risks_PK
        seconds, hops = _search(costs, hop_costs_PK, is_hop_per_block)
    return Route(
        tuple(Hop(costs.peers[p], first + start, first + end) for p, start, end in hops),
        seconds,
        tuple(costs.reason(hops, number, hop_costs_PK) for number in range(len(hops))),
    )


def usable(servers: Mapping[PeerId, ServerInfo], first: int, last: int) -> dict[PeerId, ServerInfo]:
    """Servers, in order of their ids, that take sessions and hold some of blocks [first, last)."""
    return {
        peer: info
        for peer, info in sorted(servers.items())
        if info.state is ServerState.ONLINE and info.blocks.overlap(BlockRange(first, last))
    }


def missing_blocks(servers: Mapping[PeerId, ServerInfo], first: int, last: int) -> MissingBlocks | None:
    """The blocks of [first, last) that none of the servers holds; None if there are none."""
    ranges: list[BlockRange] = []
    reached = first
    for blocks in sorted(info.blocks for info in servers.values()):
        if blocks.first > reached:
            ranges.append(BlockRange(reached, blocks.first))
        reached = max(reached, blocks.last)
    if reached < last:
        ranges.append(BlockRange(reached, last))
    return MissingBlocks(tuple(ranges)) if ranges else None


def _search(
    costs: RouteCosts, hop_costs_PK: Seconds, is_hop_per_block: bool
) -> tuple[float, list[tuple[int, int, int]]]:
    """Dynamic programme over (block, server); exact. Returns the seconds and hops as (server, start, end).

    A handful of array operations per block, whatever the number of servers.
    """
    num_peers, num_blocks = len(costs.peers), costs.num_blocks
    done_BP = np.full((num_blocks + 1, num_peers), np.inf)
    starts_BP = np.zeros((num_blocks + 1, num_peers), dtype=np.int64)
    senders_BP = np.full((num_blocks + 1, num_peers), -1)
    for block in range(num_blocks):
        here = np.flatnonzero((costs.firsts_P <= block) & (block < costs.lasts_P))
        if block == 0:
            arrivals = costs.enter_P[here]
        else:
            # Two neighbouring hops on one server would be one hop, and must not count its cache twice.
            senders_BP[block, here], arrivals = costs.ways.arrivals(done_BP[block], here, can_stay=is_hop_per_block)
        furthest = 1 if is_hop_per_block else int(costs.lasts_P[here].max()) - block
        finished = arrivals[:, None] + hop_costs_PK[here, 1 : furthest + 1]
        finished[np.arange(1, furthest + 1) > (costs.lasts_P[here] - block)[:, None]] = np.inf
        target = done_BP[block + 1 : block + 1 + furthest, here]
        is_better = target > finished.T
        done_BP[block + 1 : block + 1 + furthest, here] = np.where(is_better, finished.T, target)
        kept = starts_BP[block + 1 : block + 1 + furthest, here]
        starts_BP[block + 1 : block + 1 + furthest, here] = np.where(is_better, block, kept)
    ends_P = done_BP[num_blocks] + costs.leave_P
    server, end = int(ends_P.argmin()), num_blocks
    seconds = float(ends_P[server])
    hops: list[tuple[int, int, int]] = []
    while end > 0:
        start = int(starts_BP[end, server])
        hops.append((server, start, end))
        server, end = int(senders_BP[start, server]), start
    return seconds, hops[::-1]


def throughput_route(
    servers: Mapping[PeerId, ServerInfo], first: int, last: int, *, uniform: Callable[[], float]
) -> Route | MissingBlocks:
    """A route for stateless forward and backward (training) that spreads the load over the swarm.

    From block to block, each server that holds the next one is drawn with a chance proportional to its remaining blocks
    times its tokens per second over its queue, and is used to the end of its range. `uniform` draws from [0, 1).
    """
    online = usable(servers, first, last)
    missing = missing_blocks(online, first, last)
    if missing is not None:
        return missing
    hops: list[Hop] = []
    reasons: list[str] = []
    block = first
    while block < last:
        weights = {
            peer: (info.blocks.last - block) * info.forward_tokens_per_second / (1 + info.queue_length)
            for peer, info in online.items()
            if info.blocks.contains(block)
        }
        peer = _draw(weights, uniform())
        end = min(online[peer].blocks.last, last)
        hops.append(Hop(peer, block, end))
        reasons.append(
            f"drawn with a chance of {weights[peer] / sum(weights.values()):.0%} from {len(weights)} servers"
        )
        block = end
    seconds = sum((hop.last - hop.first) / online[hop.peer].forward_tokens_per_second for hop in hops)
    return Route(tuple(hops), seconds, tuple(reasons))


def _draw(weights: Mapping[PeerId, float], number: float) -> PeerId:
    """The key on which `number` of [0, 1) falls when the keys share the line in proportion to their weights."""
    peers = list(weights)
    bounds = list(accumulate(weights.values()))
    return peers[min(bisect_right(bounds, number * bounds[-1]), len(peers) - 1)]
