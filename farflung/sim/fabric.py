"""What lies between the stations: who is connected to whom, what is cut, and who hears of a break when.

- a process that dies: its peers hear it behind the last urgent message it sent;
- a message to a process that is not there, or has restarted since: its sender hears it when the answer comes back;
- a frozen process, a partition, power lost: after 7 s of silence, on both sides where there is somebody to hear it.
"""

from collections.abc import Callable, Iterator
from random import Random

from farflung.sim.bandwidth import SharedBandwidth
from farflung.sim.connection import SILENCE_SECONDS_MAX, Chance, Connection
from farflung.sim.loop import Outside
from farflung.sim.station import MessageEvent, Station
from farflung.sim.topology import Topology, Way
from farflung.sim.trace import Trace
from farflung.world.address import PeerId
from farflung.world.doors import Contact


class Fabric:
    """All stations and what lies between them.

    With `must_introduce`, a station can dial only peers whose contact it was told through `Network.introduce`, as on
    real machines; without, everybody knows where everybody is.
    """

    def __init__(
        self,
        outside: Outside,
        topology: Topology,
        trace: Trace,
        random: Random,
        *,
        must_introduce: bool,
        size_of: Callable[[str, int], int],
    ) -> None:
        self.outside = outside
        self.topology = topology
        self.trace = trace
        self.chance = Chance(random)
        self.stations: dict[PeerId, Station] = {}
        self.watchers: list[Callable[[MessageEvent], None]] = []
        """Told of every moment of every message, in order."""
        self.size_of = size_of
        """Bytes that a frame of a kind and of so many bytes counts as."""
        self._must_introduce = must_introduce
        self._bandwidth = SharedBandwidth(outside)
        self._cuts: list[dict[str, int]] = []

    def watch(self, event: MessageEvent) -> None:
        """Tell the watchers of one moment."""
        for watcher in list(self.watchers):
            watcher(event)

    # Connections

    def connect(self, source: Station, peer: PeerId, contact: Contact | None) -> Connection | None:
        """The open connection of `source` to `peer`, made now if there is a way to dial; None if there is none."""
        connection = source.connections.get(peer)
        destination = self.stations.get(peer)
        if connection is not None or destination is None:
            return connection
        is_direct, relays = self._ways_to_dial(destination, contact)
        relay = None if is_direct else next(self._alive(relays, source, destination), None)
        if not is_direct and relay is None:
            return None
        ways = (self._way(source, destination, relay), self._way(destination, source, relay))
        connection = Connection(self.outside, self._bandwidth, self.chance, (source, destination), ways, relay)
        source.connections[peer] = connection
        connection.is_open[1] = destination.process.is_alive
        if destination.process.is_alive and destination.network is not None:
            destination.connections[source.peer] = connection
            destination.network.reached(source.peer)
        self._listen_for_silence(connection)
        return connection

    def _ways_to_dial(self, destination: Station, contact: Contact | None) -> tuple[bool, tuple[PeerId, ...]]:
        everybody = tuple(self.stations)
        if contact is None:
            return (False, ()) if self._must_introduce else (not destination.is_dial_only, everybody)
        is_direct = not destination.is_dial_only and (bool(contact.endpoints) or not self._must_introduce)
        return is_direct, contact.relays or (() if self._must_introduce else everybody)

    def _alive(self, relays: tuple[PeerId, ...], source: Station, destination: Station) -> Iterator[Station]:
        for peer in relays:
            relay = self.stations.get(peer)
            if relay is None or relay in (source, destination) or not relay.is_relay:
                continue
            if self._is_up(relay) and not self._is_cut(source, relay) and not self._is_cut(relay, destination):
                yield relay

    def _way(self, source: Station, destination: Station, relay: Station | None) -> Way:
        if relay is None:
            return self.topology.way(source.place, destination.place)
        return self.topology.way(source.place, relay.place) + self.topology.way(relay.place, destination.place)

    def _connections(self) -> list[Connection]:
        found = {id(c): c for station in self.stations.values() for c in station.connections.values()}
        return list(found.values())

    def close_end(self, connection: Connection, side: int, reason: str) -> None:
        """The process at that end learns that the connection is broken; a frozen one when it thaws."""
        if not connection.is_open[side]:
            return
        connection.is_open[side] = False
        station, other = connection.ends[side], connection.ends[1 - side]
        if station.connections.get(other.peer) is connection:
            del station.connections[other.peer]
        if not any(connection.is_open) and connection.silence is not None:
            connection.silence.cancel()
        if station.network is not None and station.process.is_alive:
            self.outside.call_in(station.process, station.network.lost, other.peer, reason)

    def reset(self, connection: Connection, side: int, reason: str) -> None:
        """Nobody is at that end: tell the other, behind what is on the way to it."""
        if self.is_passable(connection):
            connection.transmit_control(side, lambda: self.close_end(connection, 1 - side, reason))

    # Silence

    def _is_cut(self, one: Station, other: Station) -> bool:
        for groups in self._cuts:
            group, other_group = (groups.get(s.name, groups.get(s.place.site)) for s in (one, other))
            if group is not None and other_group is not None and group != other_group:
                return True
        return False

    @staticmethod
    def _is_up(station: Station) -> bool:
        return station.has_power and station.process.is_alive and not station.process.is_frozen

    def is_passable(self, connection: Connection) -> bool:
        """Whether a message sent now can get to the other machine."""
        one, other = connection.ends
        relay = connection.relay
        if relay is None:
            return not self._is_cut(one, other)
        return self._is_up(relay) and not self._is_cut(one, relay) and not self._is_cut(relay, other)

    def _listen_for_silence(self, connection: Connection) -> None:
        has_silent_end = any(end.process.is_frozen or not end.has_power for end in connection.ends)
        is_silent = has_silent_end or not self.is_passable(connection)
        if is_silent and connection.silence is None:
            connection.silence = self.outside.call_later(SILENCE_SECONDS_MAX, self._give_up, connection)
        elif not is_silent and connection.silence is not None:
            connection.silence.cancel()
            connection.silence = None

    def _give_up(self, connection: Connection) -> None:
        for side in (0, 1):
            self.close_end(connection, side, f"silent for {SILENCE_SECONDS_MAX:g} s")

    def listen_anew(self) -> None:
        """Something froze, thawed, was cut or healed: look at every connection again."""
        for connection in self._connections():
            if not self.is_passable(connection):
                connection.drop_all()
            self._listen_for_silence(connection)

    # What faults do

    def cut(self, groups: dict[str, int]) -> None:
        """Nothing passes between places (sites or nodes) of different groups; what is under way is lost."""
        self._cuts.append(groups)
        self.listen_anew()

    def heal(self, groups: dict[str, int]) -> None:
        """Undo `cut` of this very dictionary."""
        self._cuts = [cut for cut in self._cuts if cut is not groups]
        self._tell_of_the_dead()

    def die(self, station: Station, *, is_silent: bool) -> None:
        """The process of `station` is gone; `is_silent`: its machine with it, so that nobody is told."""
        station.has_power = not is_silent
        for connection in self._connections():
            if connection.relay is station and not is_silent:
                for side in (0, 1):
                    delay = connection.round_trip_seconds / 4
                    self.outside.call_later(delay, self.close_end, connection, side, "its relay died")
        for connection in list(station.connections.values()):
            side = connection.side(station)
            connection.is_open[side] = False
            connection.drop_unsent(side, has_power=not is_silent)
            if not is_silent:
                self.reset(connection, side, "its process died")
        station.connections.clear()
        self.listen_anew()

    def rise(self, station: Station, *, is_first: bool) -> None:
        """A new process runs at `station`; peers that still believe in the old one, if there was one, are told."""
        station.has_power = True
        if not is_first:
            self._tell_of_the_dead()

    def _tell_of_the_dead(self) -> None:
        """Ends that still believe in a process that died while the way was cut, or without power, hear of it."""
        self.listen_anew()
        for connection in self._connections():
            for side, station in enumerate(connection.ends):
                if not connection.is_open[side] and station.has_power:
                    self.reset(connection, side, "its process died")
