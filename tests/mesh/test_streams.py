"""Streams of changes between a rendezvous node and a member, message by message, without a network."""

import pytest

from farflung.mesh.config import MemberConfig, Profile, RendezvousConfig
from farflung.mesh.directory import Rendezvous
from farflung.mesh.member import Member
from farflung.mesh.messages import RENDEZVOUS_ACTOR, Announce, Announced, Changes, Subscribe, Subscribed
from farflung.mesh.records import read
from farflung.mesh.renewals import KNOWN_BYTES
from farflung.mesh.source import Source
from farflung.wire.certificate import TicketRole
from farflung.wire.message import Refusal
from farflung.world.address import Address
from farflung.world.effects import Effect, Send, WakeAt
from tests.mesh.swarm import contact, identity

WALL = 1_700_000_000.0
MEET, OTHER = identity("meet").peer, identity("other").peer
SUBSCRIBER = Address(OTHER, "directory")


def messages(effects: object, kind: type) -> list[object]:
    assert isinstance(effects, list | tuple)
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def rendezvous(*, config: RendezvousConfig | None = None, wall: float = WALL) -> Rendezvous:
    role = Rendezvous(MEET, {}, wall_offset_seconds=wall, config=config)
    role.start(0.0)
    return role


def member(wall: float = WALL) -> Member:
    profile = Profile(role=TicketRole.SERVER)
    return Member(identity("node"), profile, {MEET: contact("meet")}, wall_offset_seconds=wall)


def parts(role: Rendezvous, stream: int, number: int, now: float) -> list[Changes]:
    effects = role.receive(SUBSCRIBER, Subscribe(stream=stream, number=number), now)
    return [part for part in messages(effects, Changes) if isinstance(part, Changes)]


def test_a_stream_is_followed_without_gaps_and_forgotten_with_one() -> None:
    source = Source(retry_at=0.0, retry_seconds=1.0)
    assert source.follow(stream=5, number=0) and source.follow(stream=5, number=1)
    assert source.follow(stream=5, number=1), "a part that comes twice is no gap"
    assert source.follow(stream=4, number=9), "a part of an older stream is no gap"
    assert (source.stream, source.number, source.is_following) == (5, 1, True)
    assert not source.follow(stream=5, number=3)
    assert (source.stream, source.number, source.is_following) == (0, -1, False)


def test_a_member_asks_anew_at_once_when_a_part_is_missing() -> None:
    role = member()
    role.start(0.0)
    address = Address(MEET, RENDEZVOUS_ACTOR)
    role.receive(address, Changes(stream=7, number=0, records=[]), 1.0)
    effects = role.receive(address, Changes(stream=7, number=2, records=[]), 1.1)
    (asked,) = messages(effects, Subscribe)
    assert isinstance(asked, Subscribe) and (asked.stream, asked.number) == (0, -1) and len(asked.known) == KNOWN_BYTES


def test_a_subscriber_that_missed_nothing_goes_on_and_one_that_did_starts_anew() -> None:
    role = rendezvous()
    (first,) = parts(role, 0, -1, 0.0)
    node = member()
    (announce,) = messages(node.start(0.0), Announce)
    role.receive(Address(node.peer, "directory"), announce, 1.0)
    (change,) = messages(role.wake(1.1), Changes)
    assert isinstance(change, Changes) and (change.stream, change.number) == (first.stream, 1)
    # It may still be on its way, once; not for longer than from one word to the next.
    assert messages(role.receive(SUBSCRIBER, Subscribe(stream=first.stream, number=0), 1.2), Subscribed)
    (again,) = parts(role, first.stream, 0, 11.2)
    assert again.stream != first.stream and len(again.records) == 1


def test_a_restarted_rendezvous_node_does_not_take_up_the_streams_of_its_life_before() -> None:
    (before,) = parts(rendezvous(), 0, -1, 0.0)
    (after,) = parts(rendezvous(wall=WALL + 5.0), before.stream, 0, 0.0)
    assert after.stream != before.stream and after.number == 0


def test_a_large_directory_comes_in_parts_that_stay_small() -> None:
    role = rendezvous(config=RendezvousConfig(part_bytes_max=2000))
    for number in range(20):
        profile = Profile(role=TicketRole.CLIENT)
        node = Member(identity(f"n{number}"), profile, {MEET: contact("meet")}, wall_offset_seconds=WALL)
        node.publish("filler", bytes(500), 0.0)
        (announce,) = messages(node.start(0.0), Announce)
        role.receive(Address(node.peer, "directory"), announce, 0.5)
    found = parts(role, 0, -1, 1.0)
    assert [part.number for part in found] == list(range(len(found))) and len(found) >= 7
    assert sum(len(part.records) for part in found) == 20
    assert all(sum(len(lease.signed.content) for lease in part.records) <= 2000 for part in found)


def test_a_node_whose_clock_was_ahead_before_a_restart_counts_on_from_there() -> None:
    """Its record of before has a higher sequence than its clock gives now; it must not stay silent for an hour."""
    role = rendezvous()
    before, after = member(wall=WALL + 200.0), member(wall=WALL)
    (old,) = messages(before.start(0.0), Announce)
    (new,) = messages(after.start(0.0), Announce)
    source = Address(after.peer, "directory")
    role.receive(source, old, 0.0)
    (answer,) = messages(role.receive(source, new, 1.0), Announced)
    (better,) = messages(after.receive(Address(MEET, RENDEZVOUS_ACTOR), answer, 1.1), Announce)
    assert isinstance(better, Announce) and isinstance(old, Announce) and isinstance(answer, Announced)
    assert read(better.signed).sequence > answer.sequence == read(old.signed).sequence
    (answer,) = messages(role.receive(source, better, 1.2), Announced)
    assert role.book.get(after.peer) is not None and isinstance(answer, Announced)
    assert answer.sequence == read(better.signed).sequence


def test_subscribers_are_limited_and_told_so() -> None:
    role = rendezvous(config=RendezvousConfig(num_subscribers_max=1))
    parts(role, 0, -1, 0.0)
    third = Address(identity("third").peer, "directory")
    (refusal,) = messages(role.receive(third, Subscribe(stream=0, number=-1), 0.0), Refusal)
    assert isinstance(refusal, Refusal) and refusal.retry_after_seconds > 0
    role.lost(OTHER, "gone", 1.0)
    assert messages(role.receive(third, Subscribe(stream=0, number=-1), 1.0), Changes)


def test_a_silent_subscriber_is_forgotten() -> None:
    role = rendezvous(config=RendezvousConfig(num_subscribers_max=1))
    parts(role, 0, -1, 0.0)
    for tick in range(14):
        role.wake(5.0 * tick + 5.0)
    third = Address(identity("third").peer, "directory")
    assert messages(role.receive(third, Subscribe(stream=0, number=-1), 70.0), Changes)


def test_a_refusal_is_kept_for_the_user_until_it_is_over() -> None:
    role = member()
    role.start(0.0)
    address = Address(MEET, RENDEZVOUS_ACTOR)
    role.receive(address, Refusal(reason="the clock is ahead"), 1.0)
    assert role.refusals == {MEET: "the clock is ahead"} and role.joined == []
    role.receive(address, Announced(sequence=1), 2.0)
    assert role.refusals == {} and role.joined == [MEET]


def test_a_role_that_is_up_to_date_asks_to_be_woken_for_its_renewal_and_no_earlier() -> None:
    role = member()
    effects: list[Effect] = list(role.start(0.0))
    (announce,) = messages(effects, Announce)
    assert isinstance(announce, Announce)
    address = Address(MEET, RENDEZVOUS_ACTOR)
    role.receive(address, Announced(sequence=read(announce.signed).sequence), 0.1)
    (last,) = [e for e in role.receive(address, Changes(stream=3, number=0, records=[]), 0.2) if isinstance(e, WakeAt)]
    assert last.time == MemberConfig().renew_seconds


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="renews before its lease ends"):
        MemberConfig(renew_seconds=30.0)
    with pytest.raises(ValueError, match="within a subscription"):
        RendezvousConfig(compare_seconds=100.0)


@pytest.mark.parametrize("granted", [None, TicketRole.SERVER, TicketRole.CLIENT])
def test_nobody_claims_a_wider_role_than_its_ticket_grants(granted: TicketRole | None) -> None:
    role = Rendezvous(MEET, {}, wall_offset_seconds=WALL, granted=lambda peer: granted)
    role.start(0.0)
    server = member()
    announced = messages(server.start(0.0), Announce)[0]
    peer = identity("node").peer
    effects = role.receive(Address(peer, "directory"), announced, 0.1)
    if granted is TicketRole.CLIENT:
        (refusal,) = messages(effects, Refusal)
        assert isinstance(refusal, Refusal) and "server with a client ticket" in refusal.reason
        assert role.book.get(peer) is None
    else:
        assert role.book.get(peer) is not None
