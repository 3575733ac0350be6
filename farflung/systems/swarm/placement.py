"""Which blocks a server takes when it joins, and which few moves would balance the swarm: pure decisions with reasons.

Every server decides on the same announcements with the same integer search (`balance`), so all come to the same plan
and each carries out only its own part; `rebalance` keeps them from acting on different views.

Figure of merit: a chain runs through all blocks, so a swarm is as fast as the block whose servers together are slowest.
It is given as a fraction of sum(throughput * blocks) / num_blocks, the level of all blocks in an ideal balance (PETALS
balances the same quantity by another rule: each joiner takes the window whose sorted throughputs are lowest).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NewType

import numpy as np

from farflung.systems.swarm.balance import (
    MISSING_ENERGY,
    Balance,
    Integers,
    best_level,
    energy,
    integer_levels,
    soft_lowest,
)
from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.world.address import PeerId

Reason = NewType("Reason", str)
"""One short sentence for the log and the dashboard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementConfig:
    """When balancing is worth its price."""

    gain_min: float = 0.015
    """A plan must raise the (softly taken) lowest throughput by this fraction, or give a missing block a server."""
    loading_price: float = 0.045
    """The gain, as a fraction, that would justify loading all blocks of the swarm anew; fewer blocks, less gain."""
    quiet_seconds: float = 60.0
    """How long nobody must have come or gone before servers move for balance alone; a missing block does not wait."""
    settle_seconds: float = 5.0
    """How long a claim must stand before its move may begin: longer than an announcement takes to reach all."""
    silence_seconds: float = 60.0
    """How long a claim waits for the other servers of its plan before it plans without those that are silent."""
    move_seconds_max: float = 900.0
    """How long a server that moves keeps others from planning; after that it is taken to be stuck."""

    def __post_init__(self) -> None:
        if not (self.gain_min > 0 and self.loading_price >= 0):
            raise ValueError("gain_min must be positive and loading_price must not be negative.")
        if self.quiet_seconds < 0:
            raise ValueError("quiet_seconds must not be negative.")
        if not 0 <= self.settle_seconds < self.silence_seconds:
            raise ValueError("silence_seconds must be larger than settle_seconds, which must not be negative.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One server as placement sees it."""

    peer: PeerId
    blocks: BlockRange
    throughput: float
    """Blocks per second."""
    moving_to: BlockRange | None = None
    """The range it claims and will hold next."""
    is_moving: bool = False
    """Whether it has left `blocks` and loads `moving_to`; before that, a claim may still be withdrawn."""
    is_movable: bool = True
    is_serving: bool = True
    """Whether `blocks` are loaded and in use."""

    @property
    def place(self) -> BlockRange:
        """Where it will be as far as is settled: a move that has begun counts as done."""
        return self.moving_to if self.is_moving and self.moving_to is not None else self.blocks


@dataclass(frozen=True, slots=True)
class Move:
    """One server goes from `source` to `target`."""

    peer: PeerId
    source: BlockRange
    target: BlockRange

    @property
    def loaded_blocks(self) -> int:
        """How many blocks it must load: those it does not hold already."""
        return self.target.num_blocks - self.target.overlap(self.source)


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves in an order in which none of them leaves a block without a server that had one; empty if none pays."""

    moves: tuple[Move, ...]
    reason: Reason

    def target(self, peer: PeerId) -> BlockRange | None:
        """Where the plan sends `peer`; None if it may stay."""
        return next((move.target for move in self.moves if move.peer == peer), None)


def holders(servers: Mapping[PeerId, ServerInfo], num_blocks: int) -> tuple[Holder, ...]:
    """The servers that count for placement, in order of peer id.

    Those that leave, and those whose ranges lie outside the model, do not count. Throughputs are rounded to two digits,
    so that a speed measured anew does not change everybody's plan.
    """
    return tuple(
        Holder(
            peer=peer,
            blocks=info.blocks,
            throughput=float(f"{info.blocks_per_second:.1e}"),
            moving_to=info.moving_to,
            is_moving=info.state is ServerState.DRAINING,
            is_movable=info.state is ServerState.ONLINE and not info.is_pinned,
            is_serving=info.state is ServerState.ONLINE,
        )
        for peer, info in sorted(servers.items())
        if max(info.blocks.last, info.moving_to.last if info.moving_to else 0) <= num_blocks
        and (info.state is not ServerState.DRAINING or info.moving_to is not None)
    )


def throughputs(swarm: Sequence[Holder], num_blocks: int) -> list[float]:
    """Summed throughput of the holders of each block, in blocks per second."""
    summed = [0.0] * num_blocks
    for holder in swarm:
        for block in range(*holder.place):
            summed[block] += holder.throughput
    return summed


def merit(swarm: Sequence[Holder], num_blocks: int) -> float:
    """The lowest throughput of a block as a fraction of that in an ideal balance; 0 while a block is missing."""
    summed = throughputs(swarm, num_blocks)
    return min(summed) * num_blocks / sum(summed) if swarm else 0.0


def is_better(swarm: Sequence[Holder], other: Sequence[Holder], num_blocks: int) -> bool:
    """Whether the same servers are better placed in `swarm` than in `other`, by whatever little."""
    energies = [int(energy(_balance(places, num_blocks, 0.0).levels())) for places in (swarm, other)]
    return energies[0] < energies[1]


def num_holders(swarm: Sequence[Holder], num_blocks: int) -> Integers:
    """How many servers hold each block, counting moves that have begun as done; shape B."""
    return sum((mask(one.place, num_blocks) for one in swarm), np.zeros(num_blocks, dtype=np.int64))


def mask(blocks: BlockRange, num_blocks: int) -> Integers:
    """1 for each block of the range, else 0; shape B."""
    mask_B = np.zeros(num_blocks, dtype=np.int64)
    mask_B[blocks.first : blocks.last] = 1
    return mask_B


def choose_blocks(
    swarm: Sequence[Holder], num_blocks: int, capacity_blocks: int, throughput: float
) -> tuple[BlockRange, Reason]:
    """The range that a joining server of this capacity (blocks) and throughput (blocks per second) should take.

    Missing blocks come first, then the balance; among ranges that balance about equally well the one that leaves fewest
    blocks with a single server, then the first. Claimed moves count as done: the claimants will be there.
    """
    assert capacity_blocks > 0 and throughput > 0, (capacity_blocks, throughput)
    size = min(capacity_blocks, num_blocks)
    settled = [replace(holder, is_moving=True) for holder in swarm]
    joined = Holder(peer=PeerId(""), blocks=BlockRange(0, size), throughput=throughput)
    balance = _balance([*settled, joined], num_blocks, 0.0)
    servers_G = np.arange(len(settled))
    levels_B = balance.windows(servers_G, balance.firsts_S[:-1]).sum(axis=0)
    starts = num_blocks - size + 1
    costs_B = balance.costs(levels_B[None], np.array([len(settled)]))[0, :starts]
    holders_B = num_holders(settled, num_blocks)
    singles_B = np.concatenate(([0], np.cumsum(holders_B == 1)))
    relieved_B = singles_B[size:] - singles_B[:-size]
    tolerance = int(energy(levels_B) + costs_B.min()) % MISSING_ENERGY >> 6
    first = max(np.flatnonzero(costs_B <= costs_B.min() + tolerance), key=lambda start: (relieved_B[start], -start))
    blocks = BlockRange(int(first), int(first) + size)
    return blocks, _joining_reason(blocks, holders_B, throughputs(settled, num_blocks))


def _joining_reason(blocks: BlockRange, holders_B: Integers, summed: Sequence[float]) -> Reason:
    num_missing = int((holders_B[blocks.first : blocks.last] == 0).sum())
    if num_missing == blocks.num_blocks:
        return Reason(f"no server held blocks {blocks}")
    if num_missing:
        return Reason(f"{num_missing} of blocks {blocks} had no server")
    here, mean = min(summed[blocks.first : blocks.last]), sum(summed) / len(summed)
    return Reason(f"blocks {blocks} were the slowest: {here:.3g} of {mean:.3g} blocks/s on average")


def plan_moves(
    swarm: Sequence[Holder], num_blocks: int, config: PlacementConfig, unmovable: Collection[PeerId] = ()
) -> Plan:
    """The moves that everybody should make now, from where the holders are (claims count only once begun).

    A plan exists only if it gains at least `config.gain_min`; so one that is carried out leaves nothing to be moved
    back, and a swarm that nobody joins or leaves comes to rest.
    """
    if not swarm:
        return Plan((), Reason("no server is here"))
    ordered = tuple(sorted(swarm, key=lambda holder: holder.peer))
    return _plan_moves(ordered, num_blocks, config, frozenset(unmovable))


@lru_cache(maxsize=4)
def _plan_moves(ordered: tuple[Holder, ...], num_blocks: int, config: PlacementConfig, held: frozenset[PeerId]) -> Plan:
    """The same question is asked again every few seconds while nothing changes, and costs up to a second."""
    while True:
        balance = _balance(ordered, num_blocks, config.loading_price)
        before = int(energy(balance.levels()))
        movable = [k for k, one in enumerate(ordered) if one.is_movable and not one.is_moving and one.peer not in held]
        balance.improve(movable)
        after = int(energy(balance.levels()))
        if not _is_worth_it(before, after, num_blocks, config.gain_min):
            return Plan((), Reason("no move is worth its price"))
        wanted = [
            Move(one.peer, one.place, BlockRange(int(first), int(first) + one.place.num_blocks))
            for one, first in zip(ordered, balance.firsts_S, strict=True)
            if first != one.place.first
        ]
        moves, stuck = _in_safe_order(wanted, ordered, num_blocks)
        if not stuck:
            return Plan(moves, _plan_reason(moves, ordered, num_blocks))
        held |= {move.peer for move in stuck}


def _is_worth_it(before: int, after: int, num_blocks: int, gain_min: float) -> bool:
    if after // MISSING_ENERGY != before // MISSING_ENERGY:
        return after < before
    return soft_lowest(after, num_blocks) >= soft_lowest(before, num_blocks) * (1 + gain_min)


def _in_safe_order(
    moves: Sequence[Move], swarm: Sequence[Holder], num_blocks: int
) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
    """Order the moves so that each departure leaves every block a server; also those for which there is no order.

    While some block has no server, no chain works, and every order is as good.
    """
    holders_B = num_holders(swarm, num_blocks)
    if (holders_B == 0).any():
        return tuple(moves), ()
    done: list[Move] = []
    waiting = list(moves)
    while True:
        safe = next((move for move in waiting if (holders_B > mask(move.source, num_blocks)).all()), None)
        if safe is None:
            return tuple(done), tuple(waiting)
        holders_B += mask(safe.target, num_blocks) - mask(safe.source, num_blocks)
        waiting.remove(safe)
        done.append(safe)


def _plan_reason(moves: Sequence[Move], swarm: Sequence[Holder], num_blocks: int) -> Reason:
    targets = {move.peer: move.target for move in moves}
    moved = [replace(one, blocks=targets.get(one.peer, one.place), is_moving=False) for one in swarm]
    loaded_blocks = sum(move.loaded_blocks for move in moves)
    before, after = merit(swarm, num_blocks), merit(moved, num_blocks)
    return Reason(
        f"moving {len(moves)} of {len(swarm)} servers ({loaded_blocks} blocks to load) "
        f"raises the slowest block from {before:.2f} to {after:.2f} of an ideal balance"
    )


def _balance(swarm: Sequence[Holder], num_blocks: int, loading_price: float) -> Balance:
    sizes = [holder.place.num_blocks for holder in swarm]
    speeds = [holder.throughput for holder in swarm]
    speeds_S = integer_levels(speeds, best_level(sizes, speeds, num_blocks))
    return Balance(num_blocks, sizes, speeds_S, [holder.place.first for holder in swarm], loading_price)
