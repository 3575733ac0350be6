"""The two ends of a set of parts on its way: what may be sent now, and what has not come yet (pure)."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Outflow:
    """The sending end: at most `num_ahead` parts are sent before the first of them is known to have arrived."""

    num_parts: int
    num_ahead: int
    ready: int = 0
    """Parts before this one can be sent."""
    arrived: int = 0
    """Parts before this one have arrived."""
    sent: int = 0
    """Parts before this one have been sent."""

    def next_parts(self) -> Iterator[int]:
        """The parts to send now, each once."""
        while self.sent < min(self.ready, self.arrived + self.num_ahead):
            self.sent += 1
            yield self.sent - 1

    def take_news(self, arrived: int) -> bool:
        """The other end lacks part `arrived` and has all before it; returns whether that is news."""
        is_news = self.arrived < arrived <= self.ready
        if is_news:
            self.arrived = arrived
            self.sent = max(self.sent, arrived)
        return is_news

    def rewind(self, arrived: int) -> None:
        """What was sent from part `arrived` on is lost; the other end may have lost, in a crash, what it had before."""
        if 0 <= arrived <= self.ready:
            self.arrived = self.sent = arrived

    @property
    def is_done(self) -> bool:
        return self.arrived == self.num_parts


@dataclass(slots=True)
class Inflow:
    """The receiving end; parts may come in any order and more than once."""

    num_parts: int
    next: int = 0
    """The first part that is missing."""
    _later: dict[int, None] = field(default_factory=dict[int, None])

    def has(self, index: int) -> bool:
        """Whether that part is here."""
        return index < self.next or index in self._later

    def take(self, index: int) -> None:
        """That part is here now."""
        self._later[index] = None
        while self.next in self._later:
            del self._later[self.next]
            self.next += 1

    @property
    def is_whole(self) -> bool:
        return self.next == self.num_parts
