"""The network door of one simulated process: every message goes through the real codec and is counted at the wire."""

import zlib

from farflung.sim.connection import Connection, Frame
from farflung.sim.fabric import Fabric
from farflung.sim.process import Process
from farflung.sim.station import MessageEvent, Station
from farflung.wire.message import Message, NoSuchActor, decode, encode, kind
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact, Receiver

CONTACT_SECONDS_MAX = 2.0
"""How long messages wait for a peer that nobody has introduced, or that only it can call."""


class SimulatedNetwork:
    """Implements `world.doors.Network`; dead once its process is."""

    def __init__(self, fabric: Fabric, station: Station, process: Process) -> None:
        self._fabric = fabric
        self._station = station
        self._process = process
        self._receivers: dict[str, Receiver] = {}
        self._contacts: dict[PeerId, Contact] = {}
        self._waiting: dict[PeerId, list[tuple[bytes, str]]] = {}
        """Messages to peers that there is no way to yet."""

    @property
    def peer(self) -> PeerId:
        return self._station.peer

    def listen(self, actor: str, receiver: Receiver) -> None:
        assert actor not in self._receivers, f"actor {actor!r} is taken on {self._station.name}"
        self._receivers[actor] = receiver

    def unlisten(self, actor: str) -> None:
        self._receivers.pop(actor, None)

    def introduce(self, peer: PeerId, contact: Contact) -> None:
        self._contacts[peer] = contact
        self.reached(peer)

    def reached(self, peer: PeerId) -> None:
        """There may be a way to `peer` now: send what waits for it, in order."""
        for frame, kind_sent in self._waiting.pop(peer, []):
            self._carry(peer, frame, kind_sent)

    def round_trip_seconds(self, peer: PeerId) -> float | None:
        connection = self._connection(peer)
        return None if connection is None else connection.round_trip_seconds

    def bytes_per_second(self, peer: PeerId) -> float | None:
        connection = self._connection(peer)
        return None if connection is None else connection.bytes_per_second(connection.side(self._station))

    def _connection(self, peer: PeerId) -> Connection | None:
        return self._station.connections.get(peer) if self._process.is_alive else None

    def send(self, actor: str, destination: Address, message: object) -> None:
        assert isinstance(message, Message), f"{message!r} is not a message"
        if not self._process.is_alive:
            return
        frame = encode(actor, destination.actor, message)
        event = self._event("send", self._station.name, destination.peer, actor, destination.actor, message)
        self._fabric.watch(event)
        if not self._process.is_alive:
            return
        if destination.peer == self.peer:
            self._fabric.outside.call_in(self._process, self._deliver, self._station, frame)
        else:
            self._carry(destination.peer, frame, kind(message))
        self._fabric.watch(event._replace(phase="sent"))

    def _carry(self, peer: PeerId, frame: bytes, kind: str) -> None:
        connection = self._fabric.connect(self._station, peer, self._contacts.get(peer))
        if connection is None:
            self._wait_for_a_way(peer, frame, kind)
            return
        side = connection.side(self._station)
        other = connection.ends[1 - side]
        num_bytes = self._fabric.size_of(kind, len(frame))
        what = f"{other.name} {kind} {num_bytes} bytes {zlib.crc32(frame):08x}"
        self._station.traffic.count(peer, kind, sent=True, num_bytes=num_bytes)
        self._note("send", what)
        if not self._fabric.is_passable(connection):
            self._note("loss", what)
            return
        connection.transmit(
            side,
            Frame(
                num_bytes,
                lambda: self._arrive(connection, side, frame, num_bytes, kind, what),
                lambda: self._note("loss", what),
            ),
        )

    def _wait_for_a_way(self, peer: PeerId, frame: bytes, kind: str) -> None:
        waiting = self._waiting.setdefault(peer, [])
        waiting.append((frame, kind))
        if len(waiting) > 1:
            return

        def give_up() -> None:
            if self._waiting.get(peer) is waiting:
                del self._waiting[peer]
                self._fabric.outside.call_in(self._process, self.lost, peer, "there is no way to reach it")

        self._fabric.outside.call_later(CONTACT_SECONDS_MAX, give_up)

    def _arrive(self, connection: Connection, side: int, frame: bytes, num_bytes: int, kind: str, what: str) -> None:
        """At the other machine; its process gets the frame when it is not frozen."""
        there = connection.ends[1 - side]
        if not there.has_power:
            self._note("loss", what)
            return
        if not connection.is_open[1 - side]:
            self._note("loss", what)
            self._fabric.reset(connection, 1 - side, "no process there")
            return
        network = there.network
        assert network is not None
        there.traffic.count(self.peer, kind, sent=False, num_bytes=num_bytes)

        def take() -> None:
            # It may have been held by a freeze for so long that the connection broke meanwhile.
            if connection.is_open[1 - side]:
                network._deliver(self._station, frame)
            else:
                self._note("loss", what)

        self._fabric.outside.call_in(there.process, take)

    def _deliver(self, source: Station, frame: bytes) -> None:
        source_actor, target_actor, message = decode(frame)
        event = self._event("deliver", source.name, self.peer, source_actor, target_actor, message)
        if self._process.is_alive:
            self._fabric.watch(event)
        if not self._process.is_alive:
            return
        receiver = self._receivers.get(target_actor)
        what = f"{source.name}/{source_actor} -> {target_actor} {kind(message)} {len(frame)} bytes"
        self._note("nobody" if receiver is None else "deliver", what)
        if receiver is not None:
            receiver.deliver(Address(source.peer, source_actor), message)
        elif not isinstance(message, NoSuchActor):
            self.send(target_actor, Address(source.peer, source_actor), NoSuchActor(actor=target_actor))
        self._fabric.watch(event._replace(phase="delivered"))

    def lost(self, peer: PeerId, reason: str) -> None:
        """Tell every actor, in order of listening, that the way to `peer` broke."""
        if not self._process.is_alive:
            return
        station = self._fabric.stations.get(peer)
        self._note("lost", f"{station.name if station else peer}: {reason}")
        for actor, receiver in list(self._receivers.items()):
            if self._receivers.get(actor) is receiver:
                receiver.lost(peer, reason)

    def _note(self, what: str, detail: str) -> None:
        self._fabric.trace.add(self._fabric.outside.time(), what, self._station.name, detail)

    def _event(
        self, phase: str, source: str, target: PeerId, source_actor: str, target_actor: str, message: object
    ) -> MessageEvent:
        station = self._fabric.stations.get(target)
        name = station.name if station else str(target)
        now = self._fabric.outside.time()
        return MessageEvent(phase, source, name, source_actor, target_actor, kind(message), message, now)
