"""What a decode step costs on its way through the swarm: the seconds that `route` adds up and minimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from farflung.systems.swarm.info import ServerInfo
from farflung.systems.swarm.ways import Seconds, Ways
from farflung.world.address import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteConfig:
    """What a route is taken to cost where nothing was measured."""

    unknown_round_trip_seconds: float = 0.1
    """Between two machines of which neither announced a round-trip time."""
    hop_seconds: float = 0.0015
    """Handling of one message by a server: receiving, decoding, queueing, sending."""
    full_cache_seconds: float = 10.0
    """Penalty for a server that has too little cache left: it would refuse, or make the session wait."""
    replacement_seconds: float = 2.0
    """Noticing that a server has left and reaching another, before the replay."""


class RouteCosts:
    """Everything a route adds up, in seconds. P: peers, in order; K: blocks taken by one hop, from 0; blocks from 0."""

    def __init__(
        self,
        servers: Mapping[PeerId, ServerInfo],
        client_round_trip_seconds: Mapping[PeerId, float],
        first: int,
        last: int,
        previous: PeerId | None,
        following: PeerId | None,
        config: RouteConfig,
    ) -> None:
        self.config = config
        self.num_blocks = last - first
        self.peers = list(servers)
        self.infos = list(servers.values())
        self.firsts_P = np.array([max(info.blocks.first - first, 0) for info in self.infos])
        self.lasts_P = np.array([min(info.blocks.last, last) - first for info in self.infos])
        unknown = config.unknown_round_trip_seconds
        self.clients_P = np.array([client_round_trip_seconds.get(peer, unknown) / 2 for peer in self.peers])
        self.ways = Ways.of(servers, unknown / 2)
        self.enter_P = self._one_way_outside(previous, self.ways.out_of)
        self.leave_P = self._one_way_outside(following, self.ways.into)

    def _one_way_outside(self, peer: PeerId | None, ways: Callable[[int], Seconds]) -> Seconds:
        """One-way times between each server and one that need not be among them; None is the client."""
        if peer is None:
            return self.clients_P
        if peer in self.peers:
            return ways(self.peers.index(peer))
        unknown = self.config.unknown_round_trip_seconds
        return np.array([info.round_trip_seconds.get(peer, unknown) / 2 for info in self.infos])

    def hop_costs(self, tokens_needed: int) -> Seconds:
        """Seconds of one token in a hop of k blocks; shape P, K."""
        taken_K = np.arange(self.num_blocks + 1)
        sizes_P = np.array([info.blocks.num_blocks for info in self.infos])
        left_P = np.array([info.cache_tokens_left for info in self.infos], dtype=np.float64)
        is_full_PK = tokens_needed * taken_K > (left_P * sizes_P)[:, None]
        fixed_P = np.array([self.config.hop_seconds + waiting_seconds(info) for info in self.infos])
        speeds_P = np.array([info.blocks_per_second for info in self.infos])
        return fixed_P[:, None] + taken_K / speeds_P[:, None] + self.config.full_cache_seconds * is_full_PK

    def replay_risks(self, tokens_so_far: int, seconds_per_token: float) -> Seconds:
        """Expected seconds per token lost to replays, if a token takes `seconds_per_token`; shape P, K."""
        taken_K = np.arange(self.num_blocks + 1)
        chances_P = np.array([info.leave_probability_per_second for info in self.infos]) * seconds_per_token
        speeds_P = np.array([info.forward_tokens_per_second for info in self.infos])
        replays_PK = tokens_so_far * taken_K / speeds_P[:, None]
        return chances_P[:, None] * (self.config.replacement_seconds + replays_PK)

    def reason(self, hops: Sequence[tuple[int, int, int]], number: int, hop_costs_PK: Seconds) -> str:
        """Why this hop: what it costs, and what the next best server for the very same blocks would cost."""
        server, start, end = hops[number]
        into_P = self.ways.out_of(hops[number - 1][0]) if number else self.enter_P
        out_P = self.ways.into(hops[number + 1][0]) if number + 1 < len(hops) else self.leave_P
        away_P = into_P + out_P
        total_P = away_P + hop_costs_PK[:, end - start]
        total_P = np.where((self.firsts_P <= start) & (self.lasts_P >= end), total_P, np.inf)
        own = float(total_P[server])
        spent = f"{1000 * own:.3g} ms per token, {1000 * float(away_P[server]):.3g} of them on the way"
        total_P[server] = np.inf
        rival = int(total_P.argmin())
        if np.isinf(total_P[rival]):
            return f"{spent}; no other server holds all these blocks"
        return f"{spent}; next best {self.peers[rival][:12]} with {1000 * float(total_P[rival]):.3g} ms"


def waiting_seconds(info: ServerInfo) -> float:
    """Expected wait in a server's queue; a job not measured yet is taken as one decode step of all its blocks."""
    job_seconds = info.blocks.num_blocks / info.blocks_per_second if info.job_seconds is None else info.job_seconds
    return info.queue_length * job_seconds
