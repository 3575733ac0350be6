"""How far apart places are: links between sites and between nodes, each with latency, bandwidth, loss and jitter."""

import math
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction between two places."""

    latency_seconds: float = 0.0
    """One way, without queueing."""
    bytes_per_second: float = math.inf
    """Shared by the messages that cross at the same time."""
    jitter_seconds: float = 0.0
    """Each message waits a uniform part of this in addition; order per lane is kept."""
    loss: float = 0.0
    """Probability that a message vanishes after it was sent."""
    duplication: float = 0.0
    """Probability that a message arrives twice."""

    def __post_init__(self) -> None:
        if not 0 <= self.latency_seconds < math.inf or not 0 <= self.jitter_seconds < math.inf:
            raise ValueError("A link's latency and jitter must be finite and not negative.")
        if not self.bytes_per_second > 0:
            raise ValueError("A link's bandwidth must be positive; use a partition for a link that is down.")
        if not (0 <= self.loss < 1 and 0 <= self.duplication < 1):
            raise ValueError("A link's loss and duplication are probabilities below 1.")


LOCAL = Link(latency_seconds=0.0001, bytes_per_second=1.25e9)
"""Two machines of one site: 0.2 ms round trip, 10 Gbit/s."""

WIDE = Link(latency_seconds=0.02, bytes_per_second=12.5e6)
"""Two sites, unless said otherwise: 40 ms round trip, 100 Mbit/s."""


@dataclass(frozen=True, slots=True)
class Pipe:
    """A piece of the way with a capacity that the messages on it share; equal keys are the same piece."""

    key: Hashable
    bytes_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a node is and how wide its own connection is."""

    name: str
    site: str
    uplink_bytes_per_second: float = math.inf
    downlink_bytes_per_second: float = math.inf


@dataclass(frozen=True, slots=True)
class Way:
    """All that one message meets between two nodes."""

    pipes: tuple[Pipe, ...]
    """Only those with a finite capacity."""
    links: tuple[Link, ...]

    @property
    def latency_seconds(self) -> float:
        return sum(link.latency_seconds for link in self.links)

    def __add__(self, other: "Way") -> "Way":
        """This way and then the other (through a relay)."""
        return Way(self.pipes + other.pipes, self.links + other.links)


class Topology:
    """Links by place. A link between two nodes goes before one between their sites, and that before the default.

    The link between two sites is one pipe per direction, shared by all their nodes; within a site every pair of nodes
    has a pipe of its own (a switch).
    """

    def __init__(self, *, within: Link = LOCAL, between: Link = WIDE) -> None:
        self._within = within
        self._between = between
        self._links: dict[tuple[str, str], Link] = {}

    def link(self, one: str, other: str, link: Link, *, back: Link | None = None) -> "Topology":
        """Set the link from `one` to `other` (sites or nodes; twice the same site: within it), and the way back."""
        self._links[one, other] = link
        self._links[other, one] = back or link
        return self

    def way(self, source: Place, destination: Place) -> Way:
        """What a message from `source` to `destination` meets."""
        for key in [(source.name, destination.name), (source.site, destination.site)]:
            link = self._links.get(key)
            if link is not None:
                break
        else:
            key = (source.site, destination.site)
            link = self._within if source.site == destination.site else self._between
        if key == (source.site, destination.site) and source.site == destination.site:
            key = (source.name, destination.name)
        pipes = (
            Pipe(("up", source.name), source.uplink_bytes_per_second),
            Pipe(key, link.bytes_per_second),
            Pipe(("down", destination.name), destination.downlink_bytes_per_second),
        )
        return Way(tuple(pipe for pipe in pipes if pipe.bytes_per_second < math.inf), (link,))
