"""What members and rendezvous nodes say to each other about renewals and what was missed, message by message."""

from collections.abc import Iterable

from farflung.mesh.config import Profile
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
from farflung.wire.certificate import TicketRole
from farflung.wire.message import Refusal
from farflung.world.address import Address
from farflung.world.effects import Effect, Send
from tests.mesh.swarm import contact, identity

WALL = 1_700_000_000.0
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
