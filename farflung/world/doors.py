"""The doors themselves: clock, network, compute, store, journal, randomness, bundled as a World.

`runtime/` opens them on real machines, `sim/` on virtual time. Protocol code is given a World and knows nothing else.
Every door is used from one event-loop thread; only the functions handed to `Compute` run elsewhere.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from farflung.world.address import Address, PeerId


class Clock(Protocol):
    """Two times: one that never jumps, for deadlines, and one that machines share, for signatures that expire."""

    def now(self) -> float:
        """Seconds on a monotonic clock of this process."""
        ...

    def wall_seconds(self) -> float:
        """Seconds since the Unix epoch."""
        ...


class Receiver(Protocol):
    """What an actor offers to the network."""

    def deliver(self, source: Address, message: object) -> None:
        """Take one message. Never blocks."""
        ...

    def lost(self, peer: PeerId, reason: str) -> None:
        """The way to `peer` broke; messages sent to it may or may not have arrived."""
        ...


@dataclass(frozen=True, slots=True)
class Contact:
    """How a peer can be reached, as its signed record says."""

    endpoints: tuple[str, ...] = ()
    """host:port pairs that accept connections; none for a node behind a NAT or firewall."""
    relays: tuple[PeerId, ...] = ()
    """Peers that hold a stream of this node and forward to it."""


class Network(Protocol):
    """Ordered messages between actors, best effort.

    Messages of one actor to one peer arrive in order or not at all, except that large ones travel on bulk lanes and
    may be overtaken by small ones. A broken way is told once to every local actor through `Receiver.lost`.
    """

    @property
    def peer(self) -> PeerId:
        """This node."""
        ...

    def listen(self, actor: str, receiver: Receiver) -> None:
        """Deliver messages for `actor` to `receiver` from now on. An actor name is taken once."""
        ...

    def unlisten(self, actor: str) -> None:
        """Stop delivering to `actor`; later messages for it are answered with `wire.message.NoSuchActor`."""
        ...

    def send(self, actor: str, destination: Address, message: object) -> None:
        """Send `message` in the name of local `actor`. Never blocks, never raises for a peer's sake."""
        ...

    def introduce(self, peer: PeerId, contact: Contact) -> None:
        """Learn how to reach `peer`; replaces what was known."""
        ...

    def round_trip_seconds(self, peer: PeerId) -> float | None:
        """Smoothed round-trip time to a peer with an open link, else None."""
        ...

    def bytes_per_second(self, peer: PeerId) -> float | None:
        """Bandwidth seen towards a peer, if enough has been sent to tell, else None."""
        ...


@dataclass(frozen=True, slots=True)
class Failed:
    """Result of a computation that raised."""

    error: Exception


class Compute(Protocol):
    """Where arithmetic happens: real threads, or virtual seconds."""

    def submit(
        self, done: Callable[[object], None], function: Callable[..., object], *arguments: object, seconds: float
    ) -> None:
        """Run `function(*arguments)` on the device, one call at a time in order of submission, and pass the result, or
        `Failed`, to `done` on the event loop. `seconds` is what the simulator charges for it."""
        ...


class Store(Protocol):
    """Small durable values by key; a write is atomic and survives a crash once it has returned."""

    def read(self, key: str) -> bytes | None: ...

    def write(self, key: str, value: bytes) -> None: ...

    def delete(self, key: str) -> None: ...

    def keys(self, prefix: str = "") -> list[str]:
        """Keys with `prefix`, sorted."""
        ...


class Journal(Protocol):
    """An append-only log. What was appended but not synced is gone after a crash."""

    def append(self, record: bytes) -> None: ...

    def sync(self) -> None: ...

    def records(self) -> Iterable[bytes]:
        """All records in order of appending."""
        ...

    def drop(self, num_records: int) -> None:
        """Forget the oldest records for good; call it with everything synced. A crash leaves all of them or none."""
        ...


class Traffic(Protocol):
    """The one byte counter that every report uses."""

    def count(self, peer: PeerId, kind: str, *, sent: bool, num_bytes: int) -> None: ...


@dataclass(slots=True)
class TrafficMeter:
    """Bytes and messages per peer, message kind and direction, counted where frames meet the wire."""

    num_bytes: dict[tuple[PeerId, str, bool], int] = field(default_factory=dict[tuple[PeerId, str, bool], int])
    num_messages: dict[tuple[PeerId, str, bool], int] = field(default_factory=dict[tuple[PeerId, str, bool], int])

    def count(self, peer: PeerId, kind: str, *, sent: bool, num_bytes: int) -> None:
        key = (peer, kind, sent)
        self.num_bytes[key] = self.num_bytes.get(key, 0) + num_bytes
        self.num_messages[key] = self.num_messages.get(key, 0) + 1

    def total(self, *, peer: PeerId | None = None, kind: str | None = None, sent: bool | None = None) -> int:
        """Sum of bytes over the given peer, kind and direction (None: all)."""
        return sum(
            count
            for (of_peer, of_kind, was_sent), count in self.num_bytes.items()
            if (peer is None or peer == of_peer) and (kind is None or kind == of_kind) and sent in (None, was_sent)
        )


@dataclass(frozen=True, slots=True)
class World:
    """All doors of one node."""

    clock: Clock
    network: Network
    compute: Compute
    store: Store
    journal: Callable[[str], Journal]
    """Opens the journal of a name."""
    random: Callable[[str], Random]
    """Randomness for a stated purpose; in simulations it follows from the seed, the node and the purpose."""
    note: Callable[[str, str], None]
    """note(actor, sentence): a decision and its reason, for the log, the trace and the dashboard."""
    traffic: TrafficMeter
