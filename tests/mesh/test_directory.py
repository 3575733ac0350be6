"""The directory: everybody sees everybody while one rendezvous node lives, and nobody sees the dead for long."""

import pytest

from farflung.mesh.messages import RENDEZVOUS_ACTOR, Announce, Changes, Fill, Lease
from farflung.mesh.records import Record
from farflung.sim import Faults, Link, Topology
from farflung.wire.certificate import TicketRole
from farflung.world.address import Address
from farflung.world.mailbox import Mailbox
from tests.mesh.swarm import Swarm, identity

MEETINGS = ("meet-0", "meet-1", "meet-2")


def full(
    faults: Faults | None = None, *, seed: int = 0, topology: Topology | None = None, num_members: int = 3
) -> Swarm:
    swarm = Swarm(seed=seed, faults=faults, topology=topology)
    for number, name in enumerate(MEETINGS):
        swarm.meet(name, site=("eu", "us")[number % 2])
    for number in range(num_members):
        swarm.join(f"node-{number}", site=("eu", "us")[number % 2])
    return swarm


def names(num_members: int = 3) -> set[str]:
    return {*MEETINGS, *(f"node-{number}" for number in range(num_members))}


def test_everybody_sees_everybody_within_a_second() -> None:
    with full() as swarm:
        swarm.simulation.advance(1.0)
        for name in names():
            assert swarm.seen_by(name) == names()
        assert swarm.members["node-0"].joined == sorted(swarm.peer(name) for name in MEETINGS)


def test_what_is_published_reaches_all_and_is_told_once() -> None:
    with full() as swarm:
        swarm.simulation.advance(1.0)
        told: list[tuple[str, bytes | None]] = []
        swarm.members["node-1"].watch(
            lambda peer, before, after: told.append((peer, after.topics.get("swarm") if after else None))
        )
        swarm.publish("node-0", "swarm", b"blocks 0:4")
        swarm.simulation.advance(1.0)
        assert swarm.members["node-1"].topic("swarm") == {swarm.peer("node-0"): b"blocks 0:4"}
        swarm.publish("node-0", "swarm", None)
        swarm.simulation.advance(30.0)  # over several renewals, which are no changes
        assert told == [(swarm.peer("node-0"), b"blocks 0:4"), (swarm.peer("node-0"), None)]


def test_many_publications_go_out_together() -> None:
    with full() as swarm:
        swarm.simulation.advance(1.0)
        for number in range(100):
            swarm.publish("node-0", "swarm", b"%d" % number)
        swarm.simulation.advance(1.0)
        assert swarm.members["node-2"].topic("swarm") == {swarm.peer("node-0"): b"99"}
        sent = [e for e in swarm.simulation.trace.of("send", "node-0") if "meet-0 Announce " in e.detail]
        assert len(sent) <= 4


def test_a_dead_node_vanishes_with_its_lease_and_not_before_it_misses_a_renewal() -> None:
    with full(Faults().crash("node-0", at=5.0, is_silent=True)) as swarm:
        swarm.simulation.advance(20.0)
        assert swarm.seen_by("node-1") == names()
        swarm.simulation.advance(35.1 - 20.0)
        for name in names() - {"node-0"}:
            assert swarm.seen_by(name) == names() - {"node-0"}


def test_a_goodbye_is_heard_at_once_and_stays_said() -> None:
    with full() as swarm:
        swarm.simulation.advance(1.0)
        swarm.leave("node-0")
        swarm.simulation.advance(0.5)
        for name in names() - {"node-0"}:
            assert swarm.seen_by(name) == names() - {"node-0"}
        swarm.simulation.advance(120.0)
        assert swarm.seen_by("node-1") == names() - {"node-0"}


def test_a_restarted_node_is_back_at_once() -> None:
    with full(Faults().crash("node-0", at=5.0).restart("node-0", at=6.0)) as swarm:
        swarm.simulation.advance(7.0)
        assert swarm.seen_by("node-0") == swarm.seen_by("node-1") == names()


@pytest.mark.parametrize("survivor", MEETINGS)
def test_any_one_rendezvous_node_is_enough(survivor: str) -> None:
    faults = Faults()
    for name in set(MEETINGS) - {survivor}:
        faults.crash(name, at=5.0, is_silent=name == "meet-2")
    with full(faults) as swarm:
        swarm.simulation.advance(60.0)
        swarm.join("newcomer", knows=MEETINGS)
        swarm.publish("node-0", "swarm", b"news")
        swarm.simulation.advance(3.0)
        living = {survivor, "newcomer", *names()} - (set(MEETINGS) - {survivor})
        for name in living:
            assert swarm.seen_by(name) == living
            assert swarm.members[name].topic("swarm") == {swarm.peer("node-0"): b"news"}


def test_a_rendezvous_node_that_restarts_empty_is_full_again_within_one_renewal() -> None:
    faults = Faults().crash("meet-0", at=20.0).crash("meet-1", at=20.0).crash("meet-2", at=20.0)
    faults.restart("meet-1", at=25.0)
    with full(faults) as swarm:
        swarm.simulation.advance(25.0)
        swarm.simulation.advance(10.0)
        assert {swarm.peer(f"node-{number}") for number in range(3)} <= set(swarm.meeting["meet-1"].book.live())


def test_rendezvous_nodes_fill_each_other_with_what_only_one_could_hear() -> None:
    """A member that knows only one of them is seen through all; it learns of the others and tells them too."""
    swarm = Swarm()
    with swarm:
        for name in MEETINGS:
            swarm.meet(name)
        swarm.join("left", knows=["meet-0"])
        swarm.join("right", knows=["meet-2"])
        swarm.simulation.advance(1.0)
        assert swarm.seen_by("left") == swarm.seen_by("right") == {*MEETINGS, "left", "right"}
        assert len(swarm.members["left"].joined) == 3


def test_fill_passes_on_only_what_is_lacking() -> None:
    with full() as swarm:
        swarm.simulation.advance(1.0)
        before = swarm.simulation.trace.num_events
        swarm.simulation.advance(7.0)  # comparisons, but no renewals
        fills = [e for e in swarm.simulation.trace.events[before:] if " Fill " in e.detail]
        assert fills == []


def test_a_partition_splits_views_and_heals() -> None:
    with full(Faults().partition("eu", "us", during=(5.0, 65.0))) as swarm:
        swarm.simulation.advance(60.0)
        assert swarm.seen_by("node-0") == {"meet-0", "meet-2", "node-0", "node-2"}
        assert swarm.seen_by("node-1") == {"meet-1", "node-1"}
        swarm.simulation.advance(5.0 + 10.5)
        for name in names():
            assert swarm.seen_by(name) == names()


def test_a_member_cut_off_from_all_but_one_rendezvous_node_is_still_seen_by_all() -> None:
    with full(Faults().partition(["node-0"], ["meet-0", "meet-2", "node-1"], during=(5.0, 200.0))) as swarm:
        swarm.simulation.advance(150.0)
        assert swarm.seen_by("node-0") == swarm.seen_by("node-1") == names()


def test_parts_lost_on_the_way_are_asked_for_again() -> None:
    topology = Topology(within=Link(latency_seconds=0.001, loss=0.3), between=Link(latency_seconds=0.02, loss=0.3))
    with full(topology=topology, seed=4) as swarm:
        swarm.simulation.advance(30.0)
        for name in names():
            assert swarm.seen_by(name) == names()


def test_two_runs_of_one_seed_are_one() -> None:
    def trace_hash(seed: int) -> str:
        faults = Faults.random(seed, [*MEETINGS, "node-0", "node-1"], until=40.0, sites=["eu", "us"])
        with full(faults, seed=seed) as swarm:
            swarm.simulation.advance(50.0)
            return swarm.simulation.trace.trace_hash

    assert trace_hash(3) == trace_hash(3) != trace_hash(4)


# Dishonest and broken peers


def say(swarm: Swarm, name: str, actor: str, target: Address, message: object) -> None:
    """Send a message in the name of a node that also runs honest code."""

    async def speak() -> None:
        with Mailbox(swarm.simulation.world(name), actor) as mailbox:
            mailbox.send(target, message)

    swarm.simulation.run(speak(), node=name)


def record_of(name: str, *, sequence: int, issued_at: float, content: bytes = b"forged") -> Record:
    return Record(
        peer=identity(name).peer,
        sequence=sequence,
        issued_at=issued_at,
        lease_seconds=30.0,
        role=TicketRole.SERVER,
        topics={"name": name.encode(), "swarm": content},
    )


def test_a_member_tells_how_far_the_clocks_of_others_are_off() -> None:
    swarm = Swarm(clocks_ahead_seconds={"node-0": 40.0, "node-1": -7.0})
    for name in MEETINGS:
        swarm.meet(name)
    for name in ("node-0", "node-1", "node-2"):
        swarm.join(name)
    with swarm:
        for _ in range(3):
            swarm.simulation.advance(17.0)  # at different times of a lease
            ahead = {name: swarm.members[name].clocks_ahead_seconds() for name in swarm.members}
            assert ahead["node-2"][swarm.peer("node-0")] == pytest.approx(40.0, abs=1.0)
            assert ahead["node-2"][swarm.peer("node-1")] == pytest.approx(-7.0, abs=1.0)
            assert ahead["node-0"][swarm.peer("node-1")] == pytest.approx(-47.0, abs=1.0)
            assert len(ahead["node-2"]) == 5


def test_forged_replayed_and_borrowed_records_are_refused() -> None:
    with full() as swarm:
        swarm.simulation.advance(1.0)
        wall = swarm.simulation.world("node-0").clock.wall_seconds()
        honest = record_of("node-1", sequence=1 << 60, issued_at=wall).sign(identity("node-1"))
        altered = type(honest)(honest.public_key, honest.content.replace(b"forged", b"FORGED"), honest.signature)
        impostor = record_of("node-0", sequence=1 << 60, issued_at=wall).sign(identity("node-0"))
        stolen = type(honest)(impostor.public_key, honest.content, impostor.signature)
        old = record_of("node-0", sequence=1, issued_at=wall).sign(identity("node-0"))
        ancient = record_of("node-0", sequence=1 << 61, issued_at=wall - 1000.0).sign(identity("node-0"))
        early = record_of("node-0", sequence=1 << 61, issued_at=wall + 1000.0).sign(identity("node-0"))
        target = Address(swarm.peer("meet-0"), RENDEZVOUS_ACTOR)
        for number, signed in enumerate([honest, altered, stolen, old, ancient, early]):
            say(swarm, "node-0", f"liar-{number}", target, Announce(signed=signed))
        swarm.simulation.advance(3.0)
        for name in names():
            assert swarm.seen_by(name) == names()
            assert swarm.members[name].topic("swarm") == {}
        notes = " ".join(event.detail for event in swarm.simulation.trace.of("note", "meet-0"))
        assert "was announced by" in notes and "ended" in notes and "clock" in notes


def test_only_rendezvous_nodes_may_pass_records_on() -> None:
    with full() as swarm:
        swarm.simulation.advance(1.0)
        wall = swarm.simulation.world("node-0").clock.wall_seconds()
        ghost = record_of("ghost", sequence=5, issued_at=wall).sign(identity("ghost"))
        leases = [Lease(ghost, 30.0)]
        say(swarm, "node-0", "liar", Address(swarm.peer("meet-0"), RENDEZVOUS_ACTOR), Fill(records=leases))
        changes = Changes(stream=1, number=0, records=leases)
        say(swarm, "node-0", RENDEZVOUS_ACTOR, Address(swarm.peer("node-1"), "directory"), changes)
        swarm.simulation.advance(3.0)
        assert all("ghost" not in swarm.seen_by(name) for name in names())


def test_a_flood_of_announcements_is_refused_with_a_time_to_come_back() -> None:
    with full() as swarm:
        swarm.simulation.advance(1.0)
        wall = swarm.simulation.world("node-0").clock.wall_seconds()
        target = Address(swarm.peer("meet-0"), RENDEZVOUS_ACTOR)
        signed = record_of("node-0", sequence=1, issued_at=wall).sign(identity("node-0"))

        async def flood() -> None:
            with Mailbox(swarm.simulation.world("node-0"), "flood") as mailbox:
                for _ in range(200):
                    mailbox.send(target, Announce(signed=signed))

        swarm.simulation.run(flood(), node="node-0")
        swarm.simulation.advance(1.0)
        refused = [e for e in swarm.simulation.trace.of("send", "meet-0") if " Refusal " in e.detail]
        assert len(refused) > 150
        swarm.simulation.advance(15.0)
        assert swarm.seen_by("node-1") == names()
