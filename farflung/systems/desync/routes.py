"""Which way the values of an exchange travel (pure): the best ring, two levels, and how values are cut into parts.

Every part has an owner. Partial sums go up a tree to it, one hop after another; it makes the mean, whose very bytes go
down a tree to everybody, so that all have the same bits. With n members and n owners of equal shares each link of a
ring carries 2 (n - 1) / n of the values, the least an all-reduce can (Patarasuk and Yuan 2009).

ring:       up  o+1 -> o+2 -> ... -> o        down  o -> o+1 -> ... -> o-1        (sites next to each other)
two-level:  members -> their site's member for this part; those form a ring between the sites; and back
star:       as two-level, but straight to the owner's site and back
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT_VALUES = 64
"""Parts begin at multiples of this, the block of the lossy codecs."""
SITES_EXACT_MAX = 8
"""Up to so many sites every order is tried."""

BytesPerSecond = Callable[[str, str], float]
"""Bandwidth from a site to another."""


@dataclass(frozen=True)
class Tree:
    """How one part travels among `members` (numbers of seats)."""

    root: int
    members: tuple[int, ...]
    up: Mapping[int, int]
    """Whom each member but the root hands its partial sum."""
    down: Mapping[int, int]
    """From whom each member but the root gets the mean."""

    def sources(self, member: int) -> tuple[int, ...]:
        """Whose partial sums `member` waits for, in seat order."""
        return self._sources.get(member, ())

    def targets(self, member: int) -> tuple[int, ...]:
        """Whom `member` hands the mean, in seat order."""
        return self._targets.get(member, ())

    @functools.cached_property
    def _sources(self) -> dict[int, tuple[int, ...]]:
        return self._turned(self.up)

    @functools.cached_property
    def _targets(self) -> dict[int, tuple[int, ...]]:
        return self._turned(self.down)

    def _turned(self, ways: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
        found: dict[int, list[int]] = {}
        for member in self.members:
            if member in ways:
                found.setdefault(ways[member], []).append(member)
        return {end: tuple(members) for end, members in found.items()}


@dataclass(frozen=True, slots=True)
class Part:
    """Values [first, last) of the vector that is averaged."""

    first: int
    last: int
    section: int
    tree: Tree


def ring_trees(order: Sequence[int]) -> list[Tree]:
    """One tree for each owner on a ring of seats."""
    trees: list[Tree] = []
    members = tuple(sorted(order))
    for place, root in enumerate(order):
        path = [*order[place + 1 :], *order[: place + 1]]
        back = [root, *path[:-1]]
        trees.append(
            Tree(root, members, dict(itertools.pairwise(path)), {later: one for one, later in itertools.pairwise(back)})
        )
    return trees


def two_level_trees(groups: Sequence[Sequence[int]]) -> list[Tree]:
    """One tree for each owner; `groups` are the seats of each site, sites in ring order.

    The sites own equal shares, however many members they have; within a site the members take turns.
    """
    trees: list[Tree] = []
    for heads, home in _turns(groups):
        members = tuple(sorted(itertools.chain(*groups)))
        trees += [
            Tree(between.root, members, home | dict(between.up), home | dict(between.down))
            for between in ring_trees(heads)
        ]
    return trees


def star_trees(groups: Sequence[Sequence[int]], shares: Sequence[float]) -> tuple[list[Tree], list[float]]:
    """Trees in which the sites hand their sums straight to the owner's site and get the mean straight from there, and
    the share of the values that each tree carries; `shares` are the sites'. Sites without a share own nothing."""
    trees: list[Tree] = []
    carried: list[float] = []
    members = tuple(sorted(itertools.chain(*groups)))
    for heads, home in _turns(groups):
        for root, share in zip(heads, shares, strict=True):
            if share > 0:
                ways = home | {head: root for head in heads if head != root}
                trees.append(Tree(root, members, ways, ways))
                carried.append(share)
    return trees, carried


def _turns(groups: Sequence[Sequence[int]]) -> list[tuple[list[int], dict[int, int]]]:
    """For each turn the member of every site that speaks for it, and to which of them the others turn."""
    turns: list[tuple[list[int], dict[int, int]]] = []
    for turn in range(max(map(len, groups))):
        heads = [group[turn % len(group)] for group in groups]
        home = {seat: head for group, head in zip(groups, heads, strict=True) for seat in group if seat != head}
        turns.append((heads, home))
    return turns


def owner_shares(sites: Sequence[str], bytes_per_second: BytesPerSecond, *, num_quanta: int = 256) -> list[float]:
    """How much of the values each site owns in a star, so that the busiest link is done first.

    Between two sites travel what the one owns and what the other owns. Quanta are given one by one to the site with
    which the links, in order of how busy they are, stay the least busy.
    """
    if len(sites) == 1:
        return [1.0]
    widths = tuple(
        min(bytes_per_second(one, other), bytes_per_second(other, one))
        for one, other in itertools.combinations(sites, 2)
    )
    return list(_shares(len(sites), widths, num_quanta))


@functools.lru_cache(maxsize=64)  # asked for with the same links in every round
def _shares(num_sites: int, widths: tuple[float, ...], num_quanta: int) -> tuple[float, ...]:
    """`widths` of the links between the sites, by pair."""
    pairs = list(itertools.combinations(range(num_sites), 2))
    quanta = [0] * num_sites

    def busy(owner: int) -> list[float]:
        given = [count + (number == owner) for number, count in enumerate(quanta)]
        loads = [(given[one] + given[other]) / width for (one, other), width in zip(pairs, widths, strict=True)]
        return sorted(loads, reverse=True)

    for _ in range(num_quanta):
        quanta[min(range(num_sites), key=busy)] += 1
    return tuple(count / num_quanta for count in quanta)


def cut(
    first: int, length: int, section: int, trees: Sequence[Tree], values_max: int, shares: Sequence[float] | None = None
) -> list[Part]:
    """Parts of a section of `length` values from `first` on, in pieces of bounded size; the trees get equal shares, or
    those given."""
    parts: list[Part] = []
    ends = list(itertools.accumulate(shares or [1.0] * len(trees)))
    bounds = [0, *(_aligned(round(length * end / ends[-1]), length) for end in ends[:-1]), length]
    for tree, (begin, end) in zip(trees, itertools.pairwise(bounds), strict=True):
        parts += [
            Part(first + start, first + min(start + values_max, end), section, tree)
            for start in range(begin, end, values_max)
        ]
    return parts


def _aligned(value: int, length: int) -> int:
    return length if value >= length else value // ALIGNMENT_VALUES * ALIGNMENT_VALUES


def best_ring(sites: Sequence[str], bytes_per_second: BytesPerSecond) -> list[str]:
    """The order of `sites` on a one-way ring whose weakest link is the strongest possible; ties: least total time.

    All orders are tried up to `SITES_EXACT_MAX` sites; beyond, a greedy ring is improved by reversals.
    """
    sites = sorted(sites)
    if len(sites) <= 2:
        return sites

    def cost(order: Sequence[str]) -> tuple[float, float]:
        seconds = [1 / bytes_per_second(one, other) for one, other in zip(order, [*order[1:], order[0]], strict=True)]
        return max(seconds), sum(seconds)

    if len(sites) <= SITES_EXACT_MAX:
        return [sites[0], *min(itertools.permutations(sites[1:]), key=lambda rest: cost([sites[0], *rest]))]
    return _improved(_greedy(sites, bytes_per_second), cost)


def _greedy(sites: Sequence[str], bytes_per_second: BytesPerSecond) -> list[str]:
    order, left = [sites[0]], list(sites[1:])
    while left:
        nearest = max(left, key=lambda site: bytes_per_second(order[-1], site))
        order.append(nearest)
        left.remove(nearest)
    return order


def _improved(order: list[str], cost: Callable[[Sequence[str]], tuple[float, float]]) -> list[str]:
    is_better = True
    while is_better:
        is_better = False
        for first, last in itertools.combinations(range(1, len(order) + 1), 2):
            turned = [*order[:first], *reversed(order[first:last]), *order[last:]]
            if cost(turned) < cost(order):
                order, is_better = turned, True
    return order
