"""Documents as they are read: in pieces, so that a text longer than memory can be tokenized."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    text: str
    """Never empty."""
    ends_document: bool


class Source(Protocol):
    """Documents that are the same, in the same order, each time they are read."""

    @property
    def name(self) -> str:
        """What the user knows it by, for messages."""
        ...

    def fingerprint(self) -> str:
        """A hash of the content: two sources with the same one have the same documents."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """All documents from the first.

        Raises:
            ValueError: what is read is not what the user said it is.
        """
        ...
