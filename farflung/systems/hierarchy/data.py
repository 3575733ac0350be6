"""The samples of a worker as the shard that its server deals to it."""

from collections.abc import Mapping
from typing import Protocol


class Data(Protocol):
    """Where a learner's samples come from."""

    @property
    def cursor(self) -> dict[str, int]:
        """Where they go on."""
        ...

    def assign(self, shard: int, cursor: Mapping[str, int]) -> None:
        """Draw from that shard alone, from `cursor` on (empty: from its beginning)."""
        ...
