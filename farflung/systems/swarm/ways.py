"""One-way times between servers: a constant but where one of two has measured it, so that few are kept of many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from farflung.systems.swarm.info import ServerInfo
from farflung.world.address import PeerId

Seconds = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ways:
    """Of servers by their index. E: pairs of which something is known, in order of senders, then of receivers."""

    num_peers: int
    unknown_seconds: float
    """Between any two others."""
    senders_E: Indices
    receivers_E: Indices
    seconds_E: Seconds
    starts_P: Indices
    """Where the pairs of each sender begin; one more for the end of the last."""

    @classmethod
    def of(cls, servers: Mapping[PeerId, ServerInfo], unknown_seconds: float) -> Ways:
        """Half the round trip as the sender measured it, else as the receiver did; to itself no time."""
        index = {peer: number for number, peer in enumerate(servers)}
        told = [
            (number, index[peer], seconds / 2)
            for number, info in enumerate(servers.values())
            for peer, seconds in info.round_trip_seconds.items()
            if peer in index and index[peer] != number
        ]
        pairs = np.array([pair[:2] for pair in told], dtype=np.int64).reshape(-1, 2)
        seconds = np.array([pair[2] for pair in told], dtype=np.float64)
        own = np.arange(len(index))
        senders = np.concatenate([own, pairs[:, 0], pairs[:, 1]])
        receivers = np.concatenate([own, pairs[:, 1], pairs[:, 0]])
        times = np.concatenate([np.zeros(len(index)), seconds, seconds])
        # Of the same pair the first counts: what its sender has measured.
        _, kept = np.unique(senders * len(index) + receivers, return_index=True)
        starts = np.searchsorted(senders[kept], np.arange(len(index) + 1))
        return cls(len(index), unknown_seconds, senders[kept], receivers[kept], times[kept], starts)

    def out_of(self, sender: int) -> Seconds:
        """From one server to each; shape P."""
        times_P = np.full(self.num_peers, self.unknown_seconds)
        known = slice(self.starts_P[sender], self.starts_P[sender + 1])
        times_P[self.receivers_E[known]] = self.seconds_E[known]
        return times_P

    def into(self, receiver: int) -> Seconds:
        """From each server to one; shape P."""
        times_P = np.full(self.num_peers, self.unknown_seconds)
        known = self.receivers_E == receiver
        times_P[self.senders_E[known]] = self.seconds_E[known]
        return times_P

    def arrivals(self, done_P: Seconds, here_H: Indices, *, can_stay: bool) -> tuple[Indices, Seconds]:
        """At each of these servers the soonest arrival from all that have `done_P`: from whom, and when; shapes H.

        Of equal ones the sender with the smaller index; itself only if it `can_stay`. What was not measured is the same
        for all, so of those senders only the first to be done matters: no server is compared with every other.
        """
        there_T = np.flatnonzero(np.isfinite(done_P))
        in_order_T = there_T[np.argsort(done_P[there_T], kind="stable")]
        place_P = np.full(self.num_peers, -1)
        place_P[here_H] = np.arange(len(here_H))
        known_K = _ranges(self.starts_P[in_order_T], self.starts_P[in_order_T + 1])
        ranks_K = np.repeat(np.arange(len(in_order_T)), self.starts_P[in_order_T + 1] - self.starts_P[in_order_T])
        places_K = place_P[self.receivers_E[known_K]]
        is_here_K = places_K >= 0
        known_K, ranks_K, places_K = known_K[is_here_K], ranks_K[is_here_K], places_K[is_here_K]

        senders_H, soonest_H = self._first_unknown(done_P, in_order_T, ranks_K, places_K, len(here_H))
        from_K = self.senders_E[known_K]
        times_K = done_P[from_K] + self.seconds_E[known_K]
        if not can_stay:
            times_K[from_K == self.receivers_E[known_K]] = np.inf
        measured_H = np.full(len(here_H), np.inf)
        np.minimum.at(measured_H, places_K, times_K)
        is_best_K = times_K == measured_H[places_K]
        from_H = np.full(len(here_H), self.num_peers)
        np.minimum.at(from_H, places_K[is_best_K], from_K[is_best_K])
        is_measured_H = (measured_H < soonest_H) | ((measured_H == soonest_H) & (from_H < senders_H))
        return np.where(is_measured_H, from_H, senders_H), np.where(is_measured_H, measured_H, soonest_H)

    def _first_unknown(
        self, done_P: Seconds, in_order_T: Indices, ranks_K: Indices, places_K: Indices, num_here: int
    ) -> tuple[Indices, Seconds]:
        """Of the senders to which nothing is known, the first to be done; infinitely late if there is none."""
        is_known_HT = np.zeros((num_here, len(in_order_T) + 1), dtype=np.bool_)
        is_known_HT[places_K, ranks_K] = True
        first_H = is_known_HT.argmin(axis=1)  # stops at the first
        times_T = np.append(done_P[in_order_T] + self.unknown_seconds, np.inf)
        return np.append(in_order_T, self.num_peers)[first_H], times_T[first_H]


def _ranges(starts: Indices, ends: Indices) -> Indices:
    """All numbers of [start, end) of the first, then of the second, and so on."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
