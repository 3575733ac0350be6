"""Members follow one rendezvous node at a time: little travels, what is missed is noticed, another takes over."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

import pytest

from farflung.mesh.book import Held
from farflung.mesh.config import MemberConfig, Profile, RendezvousConfig
from farflung.mesh.directory import Rendezvous
from farflung.mesh.member import Member
from farflung.mesh.messages import (
    RENDEZVOUS_ACTOR,
    Announce,
    Announced,
    Changes,
    Compare,
    Fill,
    Lease,
    Proof,
    Renew,
    Renewal,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from farflung.mesh.records import Record
from farflung.mesh.renewals import KNOWN_BYTES, mark_of
from farflung.sim import Faults, Link, Topology
from farflung.wire.certificate import TicketRole
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.effects import Effect, Send
from tests.mesh.swarm import Swarm, contact, identity

MEETINGS = ("meet-0", "meet-1", "meet-2")
NODES = tuple(f"node-{number}" for number in range(6))
EVERYBODY = {*MEETINGS, *NODES}
WALL = 1_700_000_000.0


def full(
    faults: Faults | None = None,
    *,
    topology: Topology | None = None,
    kinds: dict[str, type[Rendezvous]],
    member_config: MemberConfig | None = None,
) -> Swarm:
    config = member_config or MemberConfig()
    swarm = Swarm(seed=1, faults=faults, topology=topology, member_config=config)
    for name in MEETINGS:
        swarm.meet(name, kind=kinds.get(name, Rendezvous))
    for name in NODES:
        swarm.join(name)
    return swarm


def losses(swarm: Swarm, names: Iterable[str]) -> list[str]:
    """Names of living nodes that a view of `names` does without for a while, from now on."""
    lost: list[str] = []
    for name in names:
        swarm.members[name].watch(
            lambda peer, before, after: lost.append(before.topics["name"].decode()) if before and not after else None
        )
    return lost


def test_a_quiet_swarm_passes_on_no_records_and_everybody_hears_renewals_once() -> None:
    with full(kinds={}) as swarm:
        swarm.simulation.advance(20.0)
        before = {name: dict(swarm.simulation.traffic(name).num_messages) for name in NODES}
        lost = losses(swarm, EVERYBODY)
        swarm.simulation.advance(40.0)
        for name in NODES:
            traffic = swarm.simulation.traffic(name)
            heard = Counter[str]()
            for (peer, kind, is_sent), count in traffic.num_messages.items():
                if kind in ("Changes", "Announce"):
                    heard[f"{kind} {peer} {is_sent}"] = count - before[name].get((peer, kind, is_sent), 0)
            told = {key: count for key, count in heard.items() if count}
            assert len(told) == 1 and next(iter(told)).startswith("Changes"), "one tells it, and it announces nothing"
            # At most one part in each flush of renewals.
            assert next(iter(told.values())) <= 40.0 / RendezvousConfig().renewals_flush_seconds
            size = traffic.total(kind="Changes", sent=False)
            assert size < 60_000
        assert lost == [] and all(swarm.seen_by(name) == EVERYBODY for name in EVERYBODY)


@pytest.mark.parametrize("is_silent", [False, True])
@pytest.mark.parametrize("name", MEETINGS)
def test_nobody_is_forgotten_while_a_rendezvous_node_is_lost_and_news_go_on(name: str, is_silent: bool) -> None:
    with full(Faults().crash(name, at=33.0, is_silent=is_silent), kinds={}) as swarm:
        swarm.simulation.advance(30.0)
        living = EVERYBODY - {name}
        lost = losses(swarm, living)
        swarm.simulation.advance(15.0)
        swarm.publish("node-1", "swarm", b"news")
        swarm.simulation.advance(1.0)
        for other in sorted(living):
            assert swarm.members[other].topic("swarm") == {swarm.peer("node-1"): b"news"}, f"{other} follows nobody"
        swarm.simulation.advance(100.0)
        assert set(lost) == {name}
        assert all(swarm.seen_by(other) == living for other in living)


def test_a_member_goes_round_all_rendezvous_nodes() -> None:
    with full(kinds={}) as swarm:
        heard: dict[str, set[PeerId]] = {name: set() for name in NODES}
        for _ in range(4):
            before = {name: dict(swarm.simulation.traffic(name).num_messages) for name in NODES}
            swarm.simulation.advance(MemberConfig().follow_seconds)
            for name in NODES:
                for (peer, kind, is_sent), count in swarm.simulation.traffic(name).num_messages.items():
                    if kind == "Changes" and not is_sent and count > before[name].get((peer, kind, is_sent), 0):
                        heard[name].add(peer)
        assert all(len(peers) == len(MEETINGS) for peers in heard.values())


def test_among_many_the_dead_vanish_with_their_longer_leases_and_few_renew_often_again() -> None:
    """Nine nodes that are many for their budget: thirty seconds between renewals, leases of ninety."""
    faults = Faults()
    for number in range(1, 6):
        faults.crash(f"node-{number}", at=100.0, is_silent=True)
    with full(faults, kinds={}, member_config=MemberConfig(renewals_per_second_max=0.3)) as swarm:
        swarm.simulation.advance(99.0)
        assert {record.renew_seconds for record in swarm.members["node-0"].view.values()} == {30.0}
        swarm.simulation.advance(35.0)
        assert swarm.seen_by("node-0") == EVERYBODY
        swarm.simulation.advance(60.0)
        living = {*MEETINGS, "node-0"}
        assert all(swarm.seen_by(name) == living for name in living)
        swarm.simulation.advance(31.0)
        assert all(record.renew_seconds < 15.0 for record in swarm.members["node-0"].view.values())


class Withholding(Rendezvous):
    """Keeps one node back from all who follow it."""

    hidden: ClassVar[PeerId] = identity("node-0").peer

    def _parts(self, records: Iterable[Held], renewals: Iterable[Held], now: float) -> Iterable[Any]:
        def shown(all_held: Iterable[Held]) -> list[Held]:
            return [held for held in all_held if held.record.peer != self.hidden]

        return super()._parts(shown(records), shown(renewals), now)


def test_what_one_rendezvous_node_keeps_back_another_tells() -> None:
    with full(kinds={"meet-1": Withholding}) as swarm:
        swarm.simulation.advance(1.0)
        others = [name for name in NODES if name != "node-0"]
        deceived = [name for name in others if "node-0" not in swarm.seen_by(name)]
        assert 0 < len(deceived) < len(others)
        swarm.simulation.advance(MemberConfig().follow_seconds + 1.0)
        assert all("node-0" in swarm.seen_by(name) for name in deceived)


def test_lost_parts_are_noticed_and_asked_for_before_leases_end() -> None:
    link = Link(latency_seconds=0.01, loss=0.1)
    with full(topology=Topology(within=link, between=link), kinds={}) as swarm:
        swarm.simulation.advance(30.0)
        lost = losses(swarm, EVERYBODY)
        swarm.simulation.advance(600.0)
        assert all(swarm.seen_by(name) == EVERYBODY for name in EVERYBODY)
        assert lost == []


# Message by message

MEET, OTHER = identity("meet").peer, identity("other").peer


def messages(effects: Iterable[Effect], kind: type) -> list[object]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def rendezvous() -> Rendezvous:
    role = Rendezvous(MEET, {OTHER: contact("other")}, wall_offset_seconds=WALL)
    role.start(0.0)
    return role


def member(*meetings: str) -> Member:
    seeds = {identity(name).peer: contact(name) for name in meetings or ("meet",)}
    return Member(identity("node"), Profile(role=TicketRole.SERVER), seeds, wall_offset_seconds=WALL)


NODE = Address(identity("node").peer, "directory")
LISTENER = Address(identity("listener").peer, "directory")


def announced(role: Rendezvous, node: Member) -> Announce:
    (announce,) = messages(node.start(0.0), Announce)
    assert isinstance(announce, Announce)
    (answer,) = messages(role.receive(NODE, announce, 0.0), Announced)
    node.receive(Address(MEET, RENDEZVOUS_ACTOR), answer, 0.0)
    return announce


def test_a_renewal_is_a_short_message_and_goes_out_with_others() -> None:
    role, node = rendezvous(), member()
    announce = announced(role, node)
    role.wake(0.1)
    role.receive(LISTENER, Subscribe(stream=0, number=-1), 0.5)
    (renew,) = messages(node.wake(10.0), Renew)
    assert isinstance(renew, Renew) and renew.mark == mark_of(announce.signed) and renew.proof.number == 1
    assert messages(role.receive(NODE, renew, 10.0), Announced)
    assert messages(role.wake(10.1), Changes) == [], "nobody waits for renewals"
    (part,) = messages(role.wake(12.0), Changes)
    assert isinstance(part, Changes) and part.records == []
    assert part.renewals == [Renewal(renew.mark, 28_000, 1, renew.proof.link)]


def test_a_follower_that_comes_anew_is_told_what_it_lacks_and_what_was_renewed() -> None:
    role, node = rendezvous(), member()
    announce = announced(role, node)
    (renew,) = messages(node.wake(10.0), Renew)
    role.receive(NODE, renew, 10.0)
    for number, num_renewals in ((0, 1), (1, 0), (5, 0)):
        known = b"another:" + bytes([3]) + mark_of(announce.signed) + bytes([number])
        (part,) = messages(role.receive(LISTENER, Subscribe(stream=0, number=-1, known=known), 11.0), Changes)
        assert isinstance(part, Changes) and part.records == [] and len(part.renewals) == num_renewals
    (whole,) = messages(role.receive(LISTENER, Subscribe(stream=0, number=-1), 11.0), Changes)
    assert isinstance(whole, Changes) and whole.renewals == []
    (lease,) = whole.records
    assert lease.proof.number == 1 and lease.seconds_left == 29.0


def test_one_who_follows_no_longer_is_told_no_more() -> None:
    role, node = rendezvous(), member()
    role.receive(LISTENER, Subscribe(stream=0, number=-1), 0.0)
    role.receive(LISTENER, Unsubscribe(), 0.0)
    announced(role, node)
    assert messages(role.wake(0.1), Changes) == []


def test_a_rendezvous_node_that_has_forgotten_a_record_is_given_it_again() -> None:
    node = member()
    announce = announced(rendezvous(), node)
    (renew,) = messages(node.wake(10.0), Renew)
    restarted = rendezvous()
    (answer,) = messages(restarted.receive(NODE, renew, 10.0), Announced)
    assert isinstance(answer, Announced) and answer.sequence == -1
    (again,) = messages(node.receive(Address(MEET, RENDEZVOUS_ACTOR), answer, 10.1), Announce)
    assert isinstance(again, Announce) and again.signed == announce.signed and again.proof.number == 1
    assert messages(restarted.receive(NODE, again, 10.2), Announced)
    assert restarted.book.get(NODE.peer) is not None


def test_forged_and_borrowed_renewals_are_refused_and_prolong_nothing() -> None:
    role, node = rendezvous(), member()
    announce = announced(role, node)
    (renew,) = messages(node.wake(10.0), Renew)
    assert isinstance(renew, Renew)
    thief = Address(identity("thief").peer, "directory")
    (answer,) = messages(role.receive(thief, renew, 10.0), Announced)
    assert isinstance(answer, Announced) and answer.sequence == -1
    forged = Renew(mark=renew.mark, proof=Proof(1, bytes(16)))
    assert messages(role.receive(NODE, forged, 10.0), Refusal)
    liar = Address(OTHER, RENDEZVOUS_ACTOR)
    role.receive(liar, Fill(records=[], renewals=[Renewal(renew.mark, 30_000, 3, bytes(16))]), 10.0)
    held = role.book.get(NODE.peer)
    assert held is not None and held.expires_at == 30.0 and held.signed == announce.signed


def test_rendezvous_nodes_fill_each_other_with_renewals() -> None:
    role, other, node = rendezvous(), rendezvous(), member()
    announce = announced(role, node)
    (renew,) = messages(node.wake(10.0), Renew)
    for number, one in enumerate((role, other)):
        one.receive(NODE, announce, 0.0)
        if number == 0:
            one.receive(NODE, renew, 10.0)
    (compare,) = messages(other.wake(11.0), Compare)
    (fill,) = messages(role.receive(Address(OTHER, RENDEZVOUS_ACTOR), compare, 11.0), Fill)
    assert isinstance(fill, Fill) and fill.records == [] and len(fill.renewals) == 1
    other.receive(Address(OTHER, RENDEZVOUS_ACTOR), fill, 11.0)
    held = other.book.get(NODE.peer)
    assert held is not None and held.expires_at == 40.0


def test_a_member_that_hears_a_renewal_of_what_it_lacks_asks_with_its_next_word() -> None:
    node, source = member(), Address(MEET, RENDEZVOUS_ACTOR)
    node.start(0.0)
    node.receive(source, Changes(stream=3, number=0, records=[]), 0.1)
    node.receive(
        source, Changes(stream=3, number=1, records=[], renewals=[Renewal(b"unknown!", 9000, 1, bytes(16))]), 5.0
    )
    (word,) = messages(node.wake(10.0), Subscribe)
    assert isinstance(word, Subscribe) and word.stream == 0 and len(word.known) == KNOWN_BYTES


def test_what_one_tells_that_is_followed_no_longer_counts_and_it_is_asked_to_stop() -> None:
    node = member("meet", "other")
    node.start(0.0)
    ghost = Record(
        peer=identity("ghost").peer, sequence=5, issued_at=WALL, lease_seconds=30.0, role=TicketRole.SERVER
    ).sign(identity("ghost"))
    asked: list[object] = []
    for peer in (MEET, OTHER):
        part = Changes(stream=1, number=0, records=[Lease(ghost, 30.0)])
        asked += messages(node.receive(Address(peer, RENDEZVOUS_ACTOR), part, 1.0), Unsubscribe)
    assert len(asked) == 1 and identity("ghost").peer in node.view


def test_a_part_that_was_lost_is_noticed_with_the_next_word() -> None:
    node, source = member(), Address(MEET, RENDEZVOUS_ACTOR)
    node.start(0.0)
    node.receive(source, Changes(stream=3, number=0, records=[]), 0.1)
    assert messages(node.receive(source, Subscribed(stream=3, number=0), 10.1), Subscribe) == []
    (ask,) = messages(node.receive(source, Subscribed(stream=3, number=1), 20.1), Subscribe)
    assert isinstance(ask, Subscribe) and ask.stream == 0
