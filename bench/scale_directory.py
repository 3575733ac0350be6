"""A directory of many nodes in the simulator: what one member and one rendezvous node hold, hear and send.

Whole members of all nodes would be the square of them to the one process. So of many nodes a few are members, and the
others announce and renew themselves as members do, without listening; what members cost rendezvous nodes is counted for
those few and multiplied. With few nodes, all are members, which shows that this counts right. Heartbeats of links, and
what nodes tell of their ways to each other, are no part of it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.scale_sizes import reachable_bytes
from farflung.mesh.book import RecordBook
from farflung.mesh.config import MemberConfig, Profile
from farflung.mesh.directory import Rendezvous
from farflung.mesh.member import Member
from farflung.mesh.messages import DIRECTORY_ACTOR, RENDEZVOUS_ACTOR, Changes, Renewal
from farflung.mesh.own_record import OwnRecord
from farflung.mesh.renewals import NUM_RENEWALS_MAX
from farflung.sim.simulation import Simulation
from farflung.wire.certificate import TicketRole
from farflung.wire.identity import Identity
from farflung.wire.message import decode, encode
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact, TrafficMeter, World
from farflung.world.effects import Effect, Introduce, Send, WakeAt
from farflung.world.host import Host
from farflung.world.role import Role

MEETINGS = ("meet-0", "meet-1", "meet-2")
TOPIC_BYTES = 400
"""What a block server publishes, about."""
JOIN_SECONDS_MAX = 120.0
TICK_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryCost:
    """What a directory of so many nodes costs."""

    num_nodes: int
    num_members: int
    """Of them whole ones."""
    newcomer_seconds: float
    """Virtual, until one who comes sees all; links have no limit here."""
    newcomer_bytes: float
    """That it hears until then."""
    member_messages_per_second: float
    member_bytes_per_second: float
    """Sent and heard."""
    member_held_bytes: int
    rendezvous_messages_per_second: float
    """Sent and heard, if all nodes were members; the mean of the three."""
    rendezvous_bytes_per_second: float
    rendezvous_held_bytes: int
    core_seconds_per_member_second: float
    """What its records cost a member, of a core: measured on books of the same size."""


class Announcer(Role):
    """Says who it is as a member does, and does not listen."""

    def __init__(
        self,
        identity: Identity,
        rendezvous: Sequence[PeerId],
        wall_offset_seconds: float,
        *,
        num_nodes: int,
        first_at: float,
    ) -> None:
        self._num_nodes = num_nodes
        self._first_at = first_at
        self._rendezvous = rendezvous
        profile = Profile(role=TicketRole.SERVER, contact=contact(identity.peer[:8]), site="site")
        self._said = OwnRecord(identity, profile, wall_offset_seconds, MemberConfig())

    def start(self, now: float) -> Sequence[Effect]:
        """Whom to tell, and when."""
        contacts = [Introduce(peer, contact(name)) for peer, name in zip(self._rendezvous, MEETINGS, strict=True)]
        return [*contacts, WakeAt(self._first_at)]

    def wake(self, now: float) -> Sequence[Effect]:
        """An announcement, or a renewal of it."""
        if self._said.signed is not None and self._said.renew(now, self._num_nodes):
            message = self._said.renewal()
        else:
            self._said.sign({"swarm": bytes(TOPIC_BYTES)}, now, self._num_nodes)
            message = self._said.announcement()
        sends = [Send(Address(peer, RENDEZVOUS_ACTOR), message) for peer in self._rendezvous]
        return [*sends, WakeAt(now + self._said.renew_seconds)]


def renew_seconds(num_nodes: int) -> float:
    """In which everybody renews once."""
    config = MemberConfig()
    return config.renew_seconds * config.stretch(num_nodes)


def contact(name: str) -> Contact:
    """Where a node of that name would listen."""
    return Contact(endpoints=(f"{name}:1",))


def identity(name: str) -> Identity:
    """A key pair that follows from a name."""
    return Identity(hashlib.sha256(name.encode()).digest())


class Directory:
    """One simulated swarm."""

    def __init__(self, num_nodes: int, num_members: int) -> None:
        self._num_nodes = num_nodes
        self.simulation = Simulation(must_introduce=True, keep_trace=False)
        self._seeds = {identity(name).peer: contact(name) for name in MEETINGS}
        self.members: dict[str, Member] = {}
        self.meeting: dict[str, Rendezvous] = {}
        for name in MEETINGS:
            self.simulation.node(name, peer=identity(name).peer, boot=lambda world, name=name: self._meet(world, name))
        num_others = num_nodes - len(MEETINGS)
        for number in range(num_others):
            if number < num_members:
                self.join(f"node-{number}")
            else:
                self._announce(f"node-{number}", renew_seconds(num_nodes) * number / num_others)

    def join(self, name: str) -> Member:
        """A whole member comes."""
        self.simulation.node(name, peer=identity(name).peer, boot=lambda world: self._join(world, name))
        return self.members[name]

    def _meet(self, world: World, name: str) -> None:
        role = Rendezvous(identity(name).peer, self._seeds, wall_offset_seconds=_offset(world))
        self.meeting[name] = role
        Host(role, world, RENDEZVOUS_ACTOR)

    def _join(self, world: World, name: str) -> None:
        profile = Profile(role=TicketRole.SERVER, contact=contact(name), site="site")
        member = Member(identity(name), profile, self._seeds, wall_offset_seconds=_offset(world))
        member.publish("swarm", bytes(TOPIC_BYTES), world.clock.now())
        self.members[name] = member
        Host(member, world, DIRECTORY_ACTOR)

    def _announce(self, name: str, first_at: float) -> None:
        def boot(world: World) -> None:
            role = Announcer(
                identity(name), list(self._seeds), _offset(world), num_nodes=self._num_nodes, first_at=first_at
            )
            Host(role, world, DIRECTORY_ACTOR)

        self.simulation.node(name, peer=identity(name).peer, boot=boot)


def _offset(world: World) -> float:
    return world.clock.wall_seconds() - world.clock.now()


def measure(num_nodes: int, num_members: int) -> DirectoryCost:
    """Let a directory come together, and count for as long as everybody renews once."""
    directory = Directory(num_nodes, num_members)
    simulation, others = directory.simulation, num_nodes - len(MEETINGS)
    _wait(simulation, lambda: all(len(member.view) >= others for member in directory.members.values()))
    simulation.advance(period := renew_seconds(num_nodes))  # by then everybody has announced itself and only renews
    members = list(directory.members)
    before = {name: _totals(simulation.traffic(name)) for name in (*members, *MEETINGS)}
    simulation.advance(period)
    spent = {name: _difference(_totals(simulation.traffic(name)), before[name]) for name in before}
    newcomer, began = directory.join("newcomer"), simulation.now()
    _wait(simulation, lambda: len(newcomer.view) > others)
    member, meeting = directory.members["node-0"], directory.meeting["meet-0"]
    own = [_mean([sum(side[index] for side in spent[name]) for name in members]) for index in (0, 1)]
    to_members = [_mean([spent[name][0][index] for name in MEETINGS]) for index in (0, 1)]
    rest = [_mean([spent[name][1][index] for name in MEETINGS]) for index in (0, 1)]
    told = [(to_members[index] * others / num_members + rest[index]) / period for index in (0, 1)]
    return DirectoryCost(
        num_nodes=num_nodes,
        num_members=num_members,
        newcomer_seconds=simulation.now() - began,
        newcomer_bytes=simulation.traffic("newcomer").total(sent=False),
        member_messages_per_second=own[0] / period,
        member_bytes_per_second=own[1] / period,
        member_held_bytes=reachable_bytes(member),
        rendezvous_messages_per_second=told[0],
        rendezvous_bytes_per_second=told[1],
        rendezvous_held_bytes=reachable_bytes(meeting),
        core_seconds_per_member_second=_core_share(num_nodes),
    )


def _wait(simulation: Simulation, is_so: Callable[[], bool]) -> None:
    began = simulation.now()
    while not is_so():
        assert simulation.now() - began < JOIN_SECONDS_MAX, "the directory does not come together"
        simulation.advance(TICK_SECONDS)


Counts = tuple[float, float]
"""Messages and bytes."""
TO_MEMBERS = ("Changes", "Subscribe", "Subscribed", "Unsubscribe")
"""Kinds that a rendezvous node exchanges with those that listen alone."""


def _totals(meter: TrafficMeter) -> tuple[Counts, Counts]:
    """Of kinds that only members cause, and of all others."""
    found: list[Counts] = []
    for wanted in (True, False):
        keys = [key for key in meter.num_bytes if (key[1] in TO_MEMBERS) is wanted]
        found.append((sum(meter.num_messages[key] for key in keys), sum(meter.num_bytes[key] for key in keys)))
    return found[0], found[1]


def _difference(after: tuple[Counts, Counts], before: tuple[Counts, Counts]) -> tuple[Counts, Counts]:
    first, second = ((one[0] - other[0], one[1] - other[1]) for one, other in zip(after, before, strict=True))
    return first, second


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _core_share(num_nodes: int) -> float:
    """Core seconds in each second in which a member takes in renewals, and now and then records, of so many nodes."""
    num_tried, period = 300, renew_seconds(num_nodes)
    book = RecordBook(wall_offset_seconds=0.0, num_records_max=num_tried)
    profile = Profile(role=TicketRole.SERVER)
    said = [OwnRecord(identity(f"node-{number}"), profile, 0.0, MemberConfig()) for number in range(num_tried)]
    records, renewals = [], []
    for one in said:
        one.sign({"swarm": bytes(TOPIC_BYTES)}, 0.0, num_nodes)
        assert one.signed is not None
        records.append(one.signed)
        one.renew(one.renew_seconds, num_nodes)
        renewals.append(Renewal(one.renewal().mark, 30_000, one.proof.number, one.proof.link))
    part = encode("rendezvous", "directory", Changes(stream=1, number=1, records=[], renewals=renewals))
    per_record = _core_seconds(lambda: [book.offer(signed, 0.0, seconds_left=30.0) for signed in records]) / num_tried
    per_renewal = _core_seconds(lambda: _take(book, part, period)) / num_tried
    return num_nodes * (per_renewal + per_record / NUM_RENEWALS_MAX) / period


def _take(book: RecordBook, part: bytes, now: float) -> None:
    message = decode(part)[2]
    assert isinstance(message, Changes)
    assert all(book.told(renewal, now)[1] is not None for renewal in message.renewals)


def _core_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
