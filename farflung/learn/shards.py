"""Who holds which parts of the data: shards dealt to workers, and moved without drawing a sample twice.

The number of shards is the capacity of a run and stays; workers come and go. A shard moves only when its holder has
reported how far it is after it has been told to stop. Of a holder that is gone, what it drew after its last report was
never acknowledged and is drawn again by whoever gets its shards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ORDER = "order"
"""Key of a cursor: which order of which samples its counts belong to."""
SHARD_PREFIX = "shard_"
"""Key of a cursor, before a shard's index: how many samples have been drawn from it, over all epochs."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `num_shards` equal parts of the samples."""

    index: int
    num_shards: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.num_shards:
            raise ValueError(f"there is no shard {self.index} of {self.num_shards}: shards are counted from 0")


def shards_of(cursor: Mapping[str, int], num_shards: int) -> dict[int, int]:
    """How many samples have been drawn from each shard of a cursor, in order of their indices.

    Raises:
        ValueError: this is no cursor in so many shards.
    """
    counts = {key: count for key, count in cursor.items() if key != ORDER}
    if not all(_is_position(key, count, num_shards) for key, count in counts.items()):
        raise ValueError(f"{dict(cursor)} is no position in {num_shards} shards: what was kept of it is damaged")
    return dict(sorted((int(key.removeprefix(SHARD_PREFIX)), count) for key, count in counts.items()))


def cursor_of(order: int, drawn: Mapping[int, int]) -> dict[str, int]:
    """The cursor that says so; undoes `shards_of`."""
    return {ORDER: order, **{f"{SHARD_PREFIX}{index}": count for index, count in drawn.items()}}


def _is_position(key: str, count: object, num_shards: int) -> bool:
    index = key.removeprefix(SHARD_PREFIX)
    is_shard = key.startswith(SHARD_PREFIX) and index.isdecimal() and int(index) < num_shards
    return is_shard and isinstance(count, int) and count >= 0


def deal_shards(
    num_shards: int, weights: Mapping[str, float], held: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Deal all shards in proportion to the holders' weights (their speed, say), moving as few as the shares allow.

    `held` says who has which now, also of holders without a weight, which lose theirs. Every holder gets at least one.

    Raises:
        ValueError: more holders than shards, or a weight that is not positive.
    """
    if len(weights) > num_shards:
        raise ValueError(f"{len(weights)} workers cannot share {num_shards} shards: begin a run with more shards")
    if not all(weight > 0 for weight in weights.values()):
        raise ValueError("the weight of a worker that shares the data must be positive")
    shares = _shares(num_shards, weights)
    kept = {name: sorted(held.get(name, ()))[:share] for name, share in shares.items()}
    settled = {index for indices in kept.values() for index in indices}
    free = [index for index in range(num_shards) if index not in settled]
    for name, share in shares.items():
        num_missing = share - len(kept[name])
        kept[name] += free[:num_missing]
        del free[:num_missing]
    return {name: tuple(sorted(indices)) for name, indices in kept.items()}


def _shares(num_shards: int, weights: Mapping[str, float]) -> dict[str, int]:
    """How many each gets: one, and of the rest its share, rounded so that they add up (largest remainder)."""
    if not weights:
        return {}
    rest, total = num_shards - len(weights), sum(weights.values())
    exact = {name: rest * weights[name] / total for name in sorted(weights)}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: rest - sum(shares.values())]:
        shares[name] += 1
    return {name: 1 + share for name, share in shares.items()}


@dataclass(frozen=True, slots=True)
class Deal:
    """What one holder draws from."""

    number: int
    """Grows with every deal that says something else than the one before; 0: the name is not known."""
    since: int
    """Number under which the holder was admitted: whatever it drew under an earlier one is not its own any more."""
    cursor: dict[str, int]
    """Its shards, each as far as it has been reported."""


@dataclass(slots=True)
class ShardLedger:
    """The leader's book: how far each shard is, who holds it, and who shall. Its fields are all its state.

    Invariant: a shard has one holder, until that one is gone or has reported under a deal that lacks the shard.
    """

    num_shards: int
    order: int
    """Of the run's data."""
    drawn: dict[int, int] = field(default_factory=dict[int, int])
    """Samples drawn from each shard as last reported."""
    holders: dict[int, str] = field(default_factory=dict[int, str])
    """Who draws from a shard now."""
    wanted: dict[int, str] = field(default_factory=dict[int, str])
    """Who shall."""
    stopped: dict[int, int] = field(default_factory=dict[int, int])
    """Shards that are to leave their holder, and the number of the deal that tells it so."""
    admitted: dict[str, int] = field(default_factory=dict[str, int])
    dealt: dict[str, int] = field(default_factory=dict[str, int])
    """Number of each holder's newest deal."""
    num_deals: int = 0

    def admit(self, names: Sequence[str]) -> None:
        """Share all shards among exactly these; whoever is not named is gone and its shards are free at once.

        Raises:
            ValueError: as `deal_shards`.
        """
        dealt = deal_shards(self.num_shards, dict.fromkeys(names, 1.0), self._by_name(self.wanted))
        self.wanted = {index: name for name, indices in dealt.items() for index in indices}
        self.holders = {index: name for index, name in self.holders.items() if name in dealt}
        self.stopped = {index: number for index, number in self.stopped.items() if index in self.holders}
        self.admitted = {name: number for name, number in self.admitted.items() if name in dealt}
        self.dealt = {name: number for name, number in self.dealt.items() if name in dealt}
        for name in names:
            if name not in self.admitted:
                self.num_deals += 1
                self.admitted[name] = self.dealt[name] = self.num_deals

    def deal(self, name: str) -> Deal:
        """What a holder draws from, now that whatever is free and meant for it is its own; to be stored, then told."""
        if name not in self.admitted:
            return Deal(0, 0, {})
        taken = [index for index, wanted in self.wanted.items() if wanted == name and index not in self.holders]
        held = [index for index, holder in self.holders.items() if holder == name]
        kept = [index for index in held if self.wanted[index] == name and index in self.stopped]
        left = [index for index in held if self.wanted[index] != name and index not in self.stopped]
        if taken or kept or left:
            self.num_deals += 1
            self.dealt[name] = self.num_deals
        self.holders |= dict.fromkeys(taken, name)
        self.stopped |= dict.fromkeys(left, self.num_deals)
        for index in kept:
            del self.stopped[index]
        mine = sorted(index for index in (*taken, *held) if index not in self.stopped)
        cursor = cursor_of(self.order, {index: self.drawn.get(index, 0) for index in mine})
        return Deal(self.dealt[name], self.admitted[name], cursor)

    def is_valid(self, name: str, number: int) -> bool:
        """Whether what a holder draws under the deal of that number is its own."""
        return name in self.admitted and number >= self.admitted[name]

    def report(self, name: str, number: int, cursor: Mapping[str, int]) -> None:
        """Note how far a holder is with all that it has held, drawing under the deal of that number.

        Raises:
            ValueError: this is no position in the shards of the run.
        """
        assert self.is_valid(name, number)
        for index, count in shards_of(cursor, self.num_shards).items():
            if self.holders.get(index) != name:
                continue
            self.drawn[index] = max(count, self.drawn.get(index, 0))
            if index in self.stopped and self.stopped[index] <= number:
                del self.holders[index], self.stopped[index]

    @staticmethod
    def _by_name(assigned: Mapping[int, str]) -> dict[str, list[int]]:
        by_name: dict[str, list[int]] = {}
        for index, name in assigned.items():
            by_name.setdefault(name, []).append(index)
        return by_name
