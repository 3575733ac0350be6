"""The search under placement: how well ranges cover a model, and which few moves would cover it better.

A block's level is the summed throughput of the servers that hold it, and the swarm is as fast as its lowest level. The
search lowers an energy, the sum over blocks of about exp(-SHARPNESS * level): smooth enough that raising any low block
shows, sharp enough that the lowest counts most. A block that nobody holds adds more than any imbalance can.

Everything is decided in integers. Servers of different makes run this search on the same announcements and must come
to the same plan, but an exponential or a vectorised sum of floats may differ between processors in its last bit.

Letters at the end of array names: S servers, G groups tried at once, B blocks (or starts of a range).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

LEVELS = 2048
"""Integer level that stands for the best lowest level a swarm could reach."""
SHARPNESS = 27
"""Factor in the exponent of the energy, per LEVELS."""
BLOCKS_MAX = 256
"""Blocks of the largest model."""
MISSING_ENERGY = 1 << 54
"""What a block without a server adds to the energy: more than all blocks together can add otherwise."""
GROUP_SIZE_MAX = 3
"""Servers that are moved together at most."""
ORDERED_GROUPS_MAX = 10_000
"""Ordered groups tried in one pass at most: pairs among 100 servers, triples among 22. Singles are always tried."""
NET_GAIN_SHIFT = 10
"""A step must lower the energy by more than its 2**-10 after paying for the blocks it loads."""


def _energy_table() -> Integers:
    # The sum over BLOCKS_MAX blocks stays below MISSING_ENERGY, and that of missing ones below 2**63.
    energies = [1 << 46]
    while energies[-1] > 0:
        energies.append(energies[-1] * (LEVELS - SHARPNESS) // LEVELS)
    energies[0] += MISSING_ENERGY
    return np.array(energies, dtype=np.int64)


ENERGIES = _energy_table()
"""Energy of a block by its level; the last entry, 0, serves all higher levels too."""
TOP = len(ENERGIES) - 1


def best_level(sizes: Sequence[int], throughputs: Sequence[float], num_blocks: int) -> float:
    """The highest lowest level that any placement could reach: no server helps a block by more than its throughput.

    It is the largest m with sum(size * min(throughput, m)) >= num_blocks * m, and never above
    sum(size * throughput) / num_blocks. Servers too few to cover the model get the latter, for scale.
    """
    fastest_first = sorted(zip(throughputs, sizes, strict=True), reverse=True)
    total = math.fsum(throughput * size for throughput, size in fastest_first)
    if sum(sizes) < num_blocks:
        return total / num_blocks
    free_blocks = num_blocks
    for throughput, size in fastest_first:
        if free_blocks <= size or throughput * free_blocks <= total:
            break
        total -= throughput * size
        free_blocks -= size
    return total / free_blocks


def integer_levels(throughputs: Sequence[float], scale: float) -> Integers:
    """Throughputs as integer levels, at least 1, where `scale` becomes LEVELS."""
    return np.array([max(1, round(min(value / scale, 2.0) * LEVELS)) for value in throughputs], dtype=np.int64)


def energy(levels_B: Integers) -> Integers:
    """Energy of the levels along the last axis."""
    return ENERGIES[np.minimum(levels_B, TOP)].sum(axis=-1)


def soft_lowest(total_energy: int, num_blocks: int) -> int:
    """The level at which all blocks, if they were equal, would have this energy: a soft minimum of the levels."""
    return int(np.searchsorted(-ENERGIES, -(total_energy // num_blocks)))


class Balance:
    """A placement under search: server s holds blocks firsts_S[s] to firsts_S[s] + sizes_S[s] - 1.

    `loading_price` is the gain of the soft lowest level, as a fraction of itself, that moving the whole swarm once
    must bring; each block to be loaded, counted from where its server really is, pays its share of it.
    """

    def __init__(
        self,
        num_blocks: int,
        sizes: Sequence[int],
        speeds_S: Integers,
        firsts: Sequence[int],
        loading_price: float = 0.0,
    ) -> None:
        assert num_blocks <= BLOCKS_MAX, num_blocks
        self.num_blocks = num_blocks
        self.sizes_S = np.array(sizes, dtype=np.int64)
        self.speeds_S = speeds_S
        self.firsts_S = np.array(firsts, dtype=np.int64)
        self._price_ppm = round(loading_price * SHARPNESS * 1_000_000)
        self._price = 0
        self._blocks_B = np.arange(num_blocks, dtype=np.int64)
        ends_SB = self._blocks_B + self.sizes_S[:, None]
        self._ends_SB = np.minimum(ends_SB, num_blocks)
        self._is_start_SB = ends_SB <= num_blocks
        self._loads_SB = np.minimum(self.sizes_S[:, None], np.abs(self._blocks_B - self.firsts_S[:, None]))

    def windows(self, servers_G: Integers, firsts_G: Integers) -> Integers:
        """Per server given, what it adds to the level of each block when its range starts there; shape G, B."""
        firsts_G1 = firsts_G[:, None]
        is_inside_GB = (self._blocks_B >= firsts_G1) & (self._blocks_B < firsts_G1 + self.sizes_S[servers_G, None])
        return is_inside_GB * self.speeds_S[servers_G, None]

    def levels(self) -> Integers:
        """The level of each block; shape B."""
        return self.windows(np.arange(len(self.sizes_S)), self.firsts_S).sum(axis=0)

    def costs(self, levels_GB: Integers, servers_G: Integers) -> Integers:
        """Change of energy, and price, if server g of the group were added at each start; shape G, B.

        Starts from which its range would leave the model cost the largest integer.
        """
        raised_GB = ENERGIES[np.minimum(levels_GB + self.speeds_S[servers_G, None], TOP)]
        changes_GB = raised_GB - ENERGIES[np.minimum(levels_GB, TOP)]
        sums_GB = np.zeros((len(servers_G), self.num_blocks + 1), dtype=np.int64)
        np.cumsum(changes_GB, axis=1, out=sums_GB[:, 1:])
        costs_GB = np.take_along_axis(sums_GB, self._ends_SB[servers_G], axis=1) - sums_GB[:, :-1]
        costs_GB += self._price * self._loads_SB[servers_G]
        return np.where(self._is_start_SB[servers_G], costs_GB, np.iinfo(np.int64).max)

    def _step(self, movable: Sequence[int], group_size: int) -> bool:
        """Take out every ordered group, put its members back one after another where each costs least; keep the best.

        Returns whether some group pays for its move.
        """
        all_servers_S = np.arange(len(self.sizes_S))
        windows_SB = self.windows(all_servers_S, self.firsts_S)
        levels_B = windows_SB.sum(axis=0)
        now = int(energy(levels_B))
        self._price = min(now, MISSING_ENERGY) * self._price_ppm // (1_000_000 * int(self.sizes_S.sum()))
        orders_GK = np.array(list(permutations(movable, group_size)), dtype=np.int64)
        levels_GB = levels_B - windows_SB[orders_GK].sum(axis=1)
        paid_S = self._price * self._loads_SB[all_servers_S, self.firsts_S]
        totals_G = energy(levels_GB) - paid_S[orders_GK].sum(axis=1)
        firsts_GK = np.empty_like(orders_GK)
        for k in range(group_size):
            costs_GB = self.costs(levels_GB, orders_GK[:, k])
            firsts_GK[:, k] = costs_GB.argmin(axis=1)
            totals_G += costs_GB.min(axis=1)
            levels_GB = levels_GB + self.windows(orders_GK[:, k], firsts_GK[:, k])
        best = int(totals_G.argmin())
        if totals_G[best] >= now - (now >> NET_GAIN_SHIFT):
            return False
        self.firsts_S[orders_GK[best]] = firsts_GK[best]
        return True

    def improve(self, movable: Sequence[int]) -> None:
        """Move single servers while one pays, else a pair, else three at once, until nothing within reach pays.

        Every step lowers the energy plus price, so the search ends.
        """
        group_size = 1
        while group_size <= min(GROUP_SIZE_MAX, len(movable)):
            if group_size > 1 and math.perm(len(movable), group_size) > ORDERED_GROUPS_MAX:
                break
            group_size = 1 if self._step(movable, group_size) else group_size + 1
