"""The chain of servers that one session runs on, as its client sees it (pure book-keeping)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from farflung.systems.swarm.messages import Hop
from farflung.world.address import PeerId


@dataclass(slots=True, eq=False)
class Link:
    """One hop of the chain and what is known of it."""

    peer: PeerId
    first: int
    last: int
    applied: int = 0
    """The newest step it is known to have applied."""
    trouble: str | None = None
    """Why it cannot be used any more."""
    ban_seconds: float = 0.0
    """How long to avoid it for this trouble."""
    is_behind: bool = False
    """It said that it cannot start from where it was asked to, but only from `applied`."""
    is_working: bool = False
    """It said that the step in question waits or runs."""
    wants_adapter: bool = False
    """It said that it lacks the session's adapter."""
    can_push: bool = True
    """Whether it reaches the next hop directly."""

    @property
    def needs_care(self) -> bool:
        """Whether waiting for it would be in vain."""
        return self.trouble is not None or self.is_behind or self.wants_adapter

    @property
    def hop(self) -> Hop:
        return Hop(self.peer, self.first, self.last)


class Chain:
    """Links in order of blocks; they cover the model without gaps."""

    def __init__(self, hops: Sequence[Hop] = ()) -> None:
        self.links = [Link(hop.peer, hop.first, hop.last) for hop in hops]

    def find(self, peer: PeerId, first: int, last: int) -> Link | None:
        """The link of that server and range, if it is (still) part of the chain."""
        for link in self.links:
            if (link.peer, link.first, link.last) == (peer, first, last):
                return link
        return None

    def on(self, peer: PeerId) -> list[Link]:
        """All links on one server."""
        return [link for link in self.links if link.peer == peer]

    def before(self, link: Link) -> Link:
        """The link whose output `link` takes."""
        return self.links[self.links.index(link) - 1]

    def replace(self, link: Link, hops: Sequence[Hop]) -> list[Link]:
        """Put fresh links in the place of a lost one; returns them."""
        position = self.links.index(link)
        fresh = [Link(hop.peer, hop.first, hop.last) for hop in hops]
        self.links[position : position + 1] = fresh
        if position > 0:
            self.links[position - 1].can_push = True
        return fresh

    def segments(self, *, is_push_wanted: bool) -> list[list[Link]]:
        """The chain cut where a server cannot push to the next; each segment is started by the client."""
        segments: list[list[Link]] = [[]]
        for link in self.links:
            segments[-1].append(link)
            if not (link.can_push and is_push_wanted):
                segments.append([])
        return [segment for segment in segments if segment]

    def pairs(self) -> list[tuple[Link, Link]]:
        """Each link with the one it hands on to."""
        return list(pairwise(self.links))

    def boundaries(self) -> list[int]:
        """Blocks at which a link starts."""
        return [link.first for link in self.links]

    def __str__(self) -> str:
        return " -> ".join(f"{link.peer[:8]}[{link.first}:{link.last}]" for link in self.links)
