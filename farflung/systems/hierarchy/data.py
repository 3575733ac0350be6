"""The samples of a worker as the shard that its server deals to it."""

from collections.abc import Mapping
from typing import Protocol

from farflung.learn.shards import ORDER, SHARD_PREFIX
from farflung.learn.stream import TokenStream


class Data(Protocol):
    """Where a learner's samples come from."""

    @property
    def cursor(self) -> dict[str, int]:
        """Where they go on."""
        ...

    def assign(self, shard: int, cursor: Mapping[str, int]) -> None:
        """Draw from that shard alone, from `cursor` on (empty: from its beginning)."""
        ...


class StreamData:
    """A token stream that is given its shard at work; its `Shard` says how many there are."""

    def __init__(self, stream: TokenStream) -> None:
        self.stream = stream

    @property
    def cursor(self) -> dict[str, int]:
        return self.stream.cursor

    def assign(self, shard: int, cursor: Mapping[str, int]) -> None:
        """As `Data.assign`; raises ValueError for a cursor of other data."""
        beginning = {ORDER: self.stream.cursor[ORDER], f"{SHARD_PREFIX}{shard}": 0}
        self.stream.seek(cursor or beginning)
