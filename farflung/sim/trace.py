"""Everything that happened in a simulation, in order, and one hash of it: two runs of one seed must agree."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple


class Event(NamedTuple):
    """One thing that happened."""

    time: float
    """Virtual seconds."""
    what: str
    """send, deliver, loss, lost, nobody, note, fault or boot."""
    node: str
    """Where it happened."""
    detail: str

    def __str__(self) -> str:
        return f"{self.time:12.6f}  {self.what:8} {self.node:14} {self.detail}"


class Trace:
    """The events of one simulation. With `keep=False` only the hash and the count grow, for very long runs."""

    def __init__(self, *, keep: bool = True) -> None:
        self._keep = keep
        self._hash = hashlib.sha256()
        self.events: list[Event] = []
        self.num_events = 0

    def add(self, time: float, what: str, node: str, detail: str) -> None:
        event = Event(time, what, node, detail)
        self._hash.update(f"{time!r}|{what}|{node}|{detail}\n".encode())
        self.num_events += 1
        if self._keep:
            self.events.append(event)

    @property
    def trace_hash(self) -> str:
        """SHA-256 of all events so far, hexadecimal."""
        return self._hash.hexdigest()

    def of(self, what: str, node: str | None = None) -> Iterator[Event]:
        """Events of one sort, on one node (None: on all)."""
        return (event for event in self.events if event.what == what and node in (None, event.node))

    def __str__(self) -> str:
        return "\n".join(map(str, self.events))
