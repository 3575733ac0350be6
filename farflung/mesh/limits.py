"""Limits on what comes from outside: bounded queues, token buckets, admission. Pure: time is an argument."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from farflung.world.address import PeerId

Item = TypeVar("Item")


class Bounded(Generic[Item]):
    """A first-in-first-out queue that says no when it is full."""

    def __init__(self, num_items_max: int) -> None:
        if num_items_max < 1:
            raise ValueError(f"A queue needs room for at least one item, not {num_items_max}.")
        self._num_items_max = num_items_max
        self._items: deque[Item] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    @property
    def is_full(self) -> bool:
        """Whether the next item would be refused."""
        return len(self._items) >= self._num_items_max

    def offer(self, item: Item) -> bool:
        """Append `item`; False if the queue is full: then tell its sender."""
        if self.is_full:
            return False
        self._items.append(item)
        return True

    def take(self) -> Item:
        """Remove and return the oldest. Raises IndexError when empty."""
        return self._items.popleft()


class TokenBucket:
    """Allows `per_second` on average and `burst` at once."""

    def __init__(self, *, per_second: float, burst: float, now: float) -> None:
        if not (per_second > 0 and burst > 0):
            raise ValueError("A token bucket needs a positive rate and burst.")
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._as_of = now

    def _refill(self, now: float) -> None:
        seconds = max(0.0, now - self._as_of)
        self._tokens = min(self._burst, self._tokens + seconds * self._per_second)
        self._as_of = max(now, self._as_of)

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Use up `amount` if it is there."""
        self._refill(now)
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def wait_seconds(self, now: float, amount: float = 1.0) -> float:
        """How long until `amount` will be there; infinite if it is more than the burst."""
        self._refill(now)
        if amount > self._burst:
            return float("inf")
        return max(0.0, (amount - self._tokens) / self._per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """How much may be under way at once."""

    num_total_max: int
    num_per_peer_max: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_per_peer_max <= self.num_total_max:
            raise ValueError("Admit at least one, and no more per peer than in total.")


class Admission:
    """Counts what is under way, in total and per peer, and says why not when it is too much."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._num_by_peer: dict[PeerId, int] = {}

    @property
    def num_total(self) -> int:
        """How many are under way."""
        return sum(self._num_by_peer.values())

    def enter(self, peer: PeerId) -> str | None:
        """None if `peer` may start one more, which is then counted; else the reason why not, for a person."""
        count = self._num_by_peer.get(peer, 0)
        if count >= self._limits.num_per_peer_max:
            return f"{count} are under way for you, which is the limit for one peer"
        if self.num_total >= self._limits.num_total_max:
            return f"{self.num_total} are under way, which is the limit"
        self._num_by_peer[peer] = count + 1
        return None

    def leave(self, peer: PeerId) -> None:
        """One of `peer` has ended."""
        count = self._num_by_peer.get(peer, 0)
        assert count > 0, f"nothing of {peer} is under way"
        if count == 1:
            del self._num_by_peer[peer]
        else:
            self._num_by_peer[peer] = count - 1

    def leave_all(self, peer: PeerId) -> None:
        """`peer` is gone with all it had under way."""
        self._num_by_peer.pop(peer, None)
