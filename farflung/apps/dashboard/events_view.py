"""What the page *Events* shows: decisions of all nodes with their reasons, gathered, newest first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from farflung.apps.status import SHORT_PEER
from farflung.mesh.messages import AskDecisions, Decision, Decisions
from farflung.world.address import PeerId

KEPT_MAX = 2000
SHOWN_MAX = 200


@dataclass(frozen=True, slots=True)
class Event:
    """One decision."""

    wall_seconds: float
    peer: PeerId
    number: int
    actor: str
    sentence: str

    @property
    def node(self) -> str:
        """Short, for people."""
        return self.peer[:SHORT_PEER]


@dataclass(slots=True)
class Gathered:
    """What nodes have told so far."""

    events: list[Event] = field(default_factory=list[Event])
    """Oldest first."""
    _known: dict[PeerId, tuple[float, int]] = field(default_factory=dict[PeerId, tuple[float, int]])
    """Life and newest number, by node."""

    def question(self, peer: PeerId) -> AskDecisions:
        """What to ask a node."""
        life, after = self._known.get(peer, (0.0, 0))
        return AskDecisions(life=life, after=after)

    def take(self, peer: PeerId, told: Decisions) -> None:
        """A node has answered; what is known of it already is passed over."""
        life, newest = self._known.get(peer, (told.life, 0))
        if life != told.life:
            newest = 0
        fresh = [decision for decision in told.decisions if decision.number > newest]
        self._known[peer] = (told.life, max([newest, *(decision.number for decision in fresh)]))
        if fresh:
            self.events += [_event(peer, decision) for decision in fresh]
            self.events.sort(key=lambda event: event.wall_seconds)
            del self.events[:-KEPT_MAX]


def _event(peer: PeerId, decision: Decision) -> Event:
    return Event(decision.wall_seconds, peer, decision.number, decision.actor, decision.sentence)


def shown(events: Sequence[Event], text: str, sites: Mapping[PeerId, str]) -> tuple[tuple[Event, str], ...]:
    """The newest events that have every word of `text` in them somewhere, each with its node's site, newest first."""
    words = text.lower().split()
    found: list[tuple[Event, str]] = []
    for event in reversed(events):
        site = sites.get(event.peer, "")
        line = f"{event.peer} {site} {event.actor} {event.sentence}".lower()
        if all(word in line for word in words):
            found.append((event, site))
        if len(found) == SHOWN_MAX:
            break
    return tuple(found)
