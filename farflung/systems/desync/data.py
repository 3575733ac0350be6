"""The samples of a worker as the coordinator deals them: shards that nobody else reads.

Invariant: what a round credits was drawn once. A worker draws from the shards of its newest deal alone, and tells with
each arrival how far it was with all that it has held and which deal it drew under; shards that it was told to give up
are dealt on once such a report has counted. What was drawn by a worker that is gone, or was not credited, is drawn
again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from farflung.systems.desync.messages import Dealt


class Data(Protocol):
    """Where a learner's samples come from; a `learn.stream.TokenStream` is one."""

    @property
    def num_shards(self) -> int:
        """Into how many the data are cut."""
        ...

    @property
    def cursor(self) -> dict[str, int]:
        """Order of the data, and how many samples were drawn from each shard that is held."""
        ...

    def seek(self, cursor: Mapping[str, int]) -> None:
        """Hold exactly those shards, each as far as the cursor says."""
        ...


@dataclass(frozen=True, slots=True)
class Position:
    """How far a worker was between two steps."""

    deal: int = 0
    """Number of the deal that it drew under."""
    cursor: dict[str, int] = field(default_factory=dict[str, int])
    """Of what it holds and what it has given up."""


class DealtData:
    """Runs on the compute door, between two steps."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._number = 0
        self._given_up: dict[str, int] = {}
        self._must_rewind = True

    @property
    def position(self) -> Position:
        """How far it is."""
        return Position(self._number, {**self._given_up, **self.data.cursor})

    def rewind(self) -> None:
        """What was drawn since the last round will not be credited: the next deal is taken to the letter."""
        self._must_rewind = True

    def is_void(self, deal: Dealt) -> bool:
        """Whether what was drawn so far is another's by now."""
        return self._number < deal.since

    def take(self, deal: Dealt) -> None:
        """Draw from these shards alone, from where the deal says or, if this worker is further, from there."""
        if not deal.number:
            return  # the coordinator has forgotten this worker: there will be another when it has joined again
        own = {**self._given_up, **self.data.cursor}
        is_exact = self._must_rewind or self.is_void(deal)
        self._number, self._must_rewind = deal.number, False
        cursor = {key: count if is_exact else max(count, own.get(key, 0)) for key, count in deal.cursor.items()}
        self._given_up = {} if is_exact else {key: count for key, count in own.items() if key not in cursor}
        self.data.seek(cursor)
