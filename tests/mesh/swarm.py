"""Small simulated swarms of members and rendezvous nodes, with keys that follow from their names."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from farflung.mesh.config import MemberConfig, Profile, RendezvousConfig
from farflung.mesh.directory import Rendezvous
from farflung.mesh.member import Member
from farflung.mesh.messages import DIRECTORY_ACTOR, RENDEZVOUS_ACTOR
from farflung.sim import Faults, Simulation, Topology
from farflung.wire.certificate import TicketRole
from farflung.wire.identity import Identity
from farflung.world.address import PeerId
from farflung.world.doors import Contact, World
from farflung.world.host import Host


def identity(name: str) -> Identity:
    """A key pair that follows from a name."""
    return Identity(hashlib.sha256(name.encode()).digest())


def contact(name: str) -> Contact:
    """Where a node of that name would listen."""
    return Contact(endpoints=(f"{name}:1",))


@dataclass
class Swarm:
    """Members and rendezvous nodes on one simulation; `members` holds the roles of their present lives."""

    seed: int = 0
    rendezvous: tuple[str, ...] = ("meet-0", "meet-1", "meet-2")
    faults: Faults | None = None
    topology: Topology | None = None
    member_config: MemberConfig = field(default_factory=MemberConfig)
    members: dict[str, Member] = field(default_factory=dict[str, Member])
    meeting: dict[str, Rendezvous] = field(default_factory=dict[str, Rendezvous])
    hosts: dict[str, Host] = field(default_factory=dict[str, Host])
    clocks_ahead_seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Members' wall clocks, before the true one."""

    def __post_init__(self) -> None:
        self.simulation = Simulation(seed=self.seed, faults=self.faults, topology=self.topology, must_introduce=True)

    def __enter__(self) -> "Swarm":
        return self

    def __exit__(self, *exception: object) -> None:
        self.simulation.close()

    def peer(self, name: str) -> PeerId:
        return identity(name).peer

    def seeds(self, names: Iterable[str]) -> dict[PeerId, Contact]:
        return {self.peer(name): contact(name) for name in names}

    def meet(
        self,
        name: str,
        *,
        site: str = "site",
        knows: Iterable[str] | None = None,
        kind: type[Rendezvous] = Rendezvous,
    ) -> None:
        """Add a rendezvous node, which is a member too; `kind`: one that may be up to no good."""
        known = self.seeds(self.rendezvous if knows is None else knows)

        def boot(world: World) -> None:
            offset = world.clock.wall_seconds() - world.clock.now()
            role = kind(self.peer(name), known, wall_offset_seconds=offset, config=RendezvousConfig())
            self.meeting[name] = role
            Host(role, world, RENDEZVOUS_ACTOR)
            self._join(world, name, site, known, is_rendezvous=True)

        self.simulation.node(name, site=site, peer=self.peer(name), boot=boot)

    def join(self, name: str, *, site: str = "site", knows: Iterable[str] | None = None) -> None:
        """Add a plain member, which knows the rendezvous nodes of its ticket."""
        known = self.seeds(self.rendezvous if knows is None else knows)
        self.simulation.node(
            name, site=site, peer=self.peer(name), boot=lambda world: self._join(world, name, site, known)
        )

    def _join(
        self, world: World, name: str, site: str, known: dict[PeerId, Contact], *, is_rendezvous: bool = False
    ) -> None:
        profile = Profile(role=TicketRole.SERVER, contact=contact(name), site=site, is_rendezvous=is_rendezvous)
        offset = world.clock.wall_seconds() - world.clock.now() + self.clocks_ahead_seconds.get(name, 0.0)
        member = Member(identity(name), profile, known, wall_offset_seconds=offset, config=self.member_config)
        member.publish("name", name.encode(), world.clock.now())
        self.members[name] = member
        self.hosts[name] = Host(member, world, DIRECTORY_ACTOR)

    def publish(self, name: str, topic: str, content: bytes | None) -> None:
        """Let a node say something, as its own code would."""

        async def say() -> None:
            self.hosts[name].perform(self.members[name].publish(topic, content, self.simulation.now()))

        self.simulation.run(say(), node=name)

    def leave(self, name: str) -> None:
        """Let a node say goodbye and end."""

        async def say() -> None:
            self.hosts[name].perform(self.members[name].leave(self.simulation.now()))

        self.simulation.run(say(), node=name)
        self.simulation.crash(name)

    def seen_by(self, name: str) -> set[str]:
        """Names of the nodes in a member's view."""
        return {text.decode() for text in self.members[name].topic("name").values()}
