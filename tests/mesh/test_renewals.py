"""Renewals by a chain of hashes: only the subject can make them, they prolong a lease, and nobody can replay them."""

import contextlib
from typing import Any

import msgspec
import pytest

from farflung.mesh.book import RecordBook
from farflung.mesh.config import MemberConfig, Profile
from farflung.mesh.messages import Lease, Proof, Renewal
from farflung.mesh.own_record import OwnRecord
from farflung.mesh.records import BadRecord, Record, read
from farflung.mesh.renewals import LINK_BYTES, NUM_RENEWALS_MAX, Renewals, mark_of, toward_anchor
from farflung.wire.certificate import TicketRole
from farflung.wire.identity import Signed
from tests.mesh.swarm import identity

WALL = 1_700_000_000.0
NODE, OTHER = identity("node"), identity("other")
CHAIN = Renewals(NODE, b"context")


def signed(**changes: Any) -> Signed:
    plain = Record(
        peer=NODE.peer,
        sequence=1,
        issued_at=WALL,
        lease_seconds=30.0,
        renew_seconds=10.0,
        role=TicketRole.SERVER,
        anchor=CHAIN.anchor,
    )
    return msgspec.structs.replace(plain, **changes).sign(NODE)


def proof(number: int) -> Proof:
    return Proof(number, CHAIN.link(number))


def book() -> RecordBook:
    return RecordBook(wall_offset_seconds=WALL, num_records_max=10)


def own_record(wall_offset_seconds: float = WALL) -> OwnRecord:
    return OwnRecord(NODE, Profile(role=TicketRole.SERVER), wall_offset_seconds, MemberConfig())


def test_every_link_leads_to_the_anchor_and_is_the_same_in_every_life() -> None:
    assert len(CHAIN.anchor) == LINK_BYTES and CHAIN.link(0) == b""
    for number in (1, 2, NUM_RENEWALS_MAX):
        assert toward_anchor(NODE.peer, CHAIN.link(number), number) == CHAIN.anchor
        assert toward_anchor(OTHER.peer, CHAIN.link(number), number) != CHAIN.anchor
    assert Renewals(NODE, b"context").link(7) == CHAIN.link(7)
    assert Renewals(NODE, b"another").link(7) != CHAIN.link(7) != Renewals(OTHER, b"context").link(7)


def test_a_renewal_prolongs_the_lease_and_some_may_be_missing() -> None:
    kept = book()
    held = kept.offer(signed(), now=0.0)
    assert held is not None
    for number, now in ((1, 10.0), (2, 20.0), (5, 49.0)):
        assert kept.expire(now) == []
        assert kept.renew(held, proof(number), now)
    assert kept.get(NODE.peer) is held and held.expires_at == 79.0 and kept.next_expiry() == 79.0
    assert kept.expire(78.9) == []
    assert kept.expire(79.0) == [held] and len(kept) == 0 and kept.next_expiry() is None


def test_what_another_holder_tells_of_a_renewal_ends_no_later_than_there_and_never_shortens() -> None:
    kept = book()
    kept.offer(signed(), now=0.0)
    mark = mark_of(signed())
    told, held = kept.told(Renewal(mark, 12_000, 1, CHAIN.link(1)), 20.0)
    assert told is held and held is not None and held.expires_at == 32.0
    kept.told(Renewal(mark, 500, 2, CHAIN.link(2)), 21.0)
    assert held.expires_at == 32.0 and held.proof.number == 2
    assert kept.told(Renewal(mark, 30_000, 2, CHAIN.link(2)), 22.0) == (held, None), "nothing new"
    assert kept.told(Renewal(b"nobody's", 30_000, 2, CHAIN.link(2)), 22.0) == (None, None)


@pytest.mark.parametrize(
    "forged",
    [
        Proof(2, CHAIN.link(1)),
        Proof(3, CHAIN.link(2)),
        Proof(1, CHAIN.link(2)),
        Proof(2, bytes(LINK_BYTES)),
        Proof(2, b""),
        Proof(2, CHAIN.link(2) + b"x"),
        Proof(2, Renewals(OTHER, b"context").link(2)),
        Proof(NUM_RENEWALS_MAX + 5, CHAIN.link(2)),
        Proof(2**62, CHAIN.link(2)),
    ],
)
@pytest.mark.parametrize("is_renewed_once", [False, True])
def test_nobody_but_the_subject_can_renew(forged: Proof, is_renewed_once: bool) -> None:
    kept = book()
    held = kept.offer(signed(), now=0.0, proof=proof(1) if is_renewed_once else Proof())
    assert held is not None
    before = held.proof, held.expires_at
    with contextlib.suppress(BadRecord):
        assert not kept.renew(held, forged, 5.0)
    assert (held.proof, held.expires_at) == before
    if forged.number > 1:
        with pytest.raises(BadRecord):
            book().offer(signed(), now=0.0, proof=forged)


def test_a_record_that_is_never_renewed_stays_so() -> None:
    kept = book()
    held = kept.offer(signed(anchor=b""), now=0.0)
    assert held is not None
    with pytest.raises(BadRecord):
        kept.renew(held, proof(1), 1.0)


def test_a_renewal_from_another_time_is_a_replay() -> None:
    kept = book()
    held = kept.offer(signed(), now=0.0)
    assert held is not None
    with pytest.raises(BadRecord, match="ahead"):
        kept.renew(held, proof(60), 10.0)
    assert kept.renew(held, proof(20), 300.0)
    with pytest.raises(BadRecord, match="ended"):
        kept.renew(held, proof(21), 800.0)


def test_what_has_expired_comes_back_only_with_a_newer_renewal() -> None:
    kept = book()
    kept.offer(signed(), now=0.0, proof=proof(2))
    kept.expire(30.0)
    for old in (Proof(), proof(1), proof(2)):
        assert kept.told(Lease(signed(), 29.0, old), 31.0) == (None, None)
    assert kept.offer(signed(), now=31.0, proof=proof(3)) is not None
    assert kept.next_expiry() == 61.0


def test_a_new_record_replaces_the_one_before_and_its_renewals() -> None:
    kept, newer = book(), Renewals(NODE, b"newer")
    kept.offer(signed(), now=0.0, proof=proof(3))
    held = kept.offer(signed(sequence=2, anchor=newer.anchor), now=1.0)
    assert held is not None and kept.get(NODE.peer) is held and kept.known() == held.mark + bytes([0])
    assert kept.marked(mark_of(signed())) is None
    with pytest.raises(BadRecord):
        kept.renew(held, proof(4), 2.0)
    assert kept.renew(held, Proof(1, newer.link(1)), 2.0)


def test_a_book_drops_each_when_its_own_lease_ends_however_often_it_was_renewed() -> None:
    names = [f"node-{number}" for number in range(20)]
    kept = RecordBook(wall_offset_seconds=WALL, num_records_max=20)
    chains: dict[str, Renewals] = {}
    for name in names:
        own = identity(name)
        chains[name] = Renewals(own, b"")
        record = msgspec.structs.replace(read(signed()), peer=own.peer, anchor=chains[name].anchor)
        kept.offer(record.sign(own), now=0.0)
    for round_number in range(1, 20):
        now = 10.0 * round_number
        for index, name in enumerate(names):
            if index >= round_number:  # node-0 renews never, node-1 once, ...
                held = kept.get(identity(name).peer)
                assert held is not None
                kept.renew(held, Proof(round_number, chains[name].link(round_number)), now)
        gone = [identity(names[round_number - 3]).peer] if round_number >= 3 else []
        assert [held.record.peer for held in kept.expire(now)] == gone


def test_a_node_renews_by_the_clock_and_signs_anew_when_its_chain_is_used_up() -> None:
    said = own_record()
    said.sign({}, 0.0, 3)
    kept, own = book(), said.signed
    assert own is not None
    held = kept.offer(own, now=0.0)
    assert held is not None
    for now, number in ((10.0, 1), (20.1, 2), (20.2, 3), (500.0, 50)):  # early once, and frozen for a while
        assert said.renew(now, 3) and said.version == (said.sequence, number)
        assert kept.renew(held, said.proof, now)
    assert not said.renew(10.0 * (NUM_RENEWALS_MAX + 1), 3)
    sequence = said.sequence
    said.sign({}, 2000.0, 3)
    assert said.version > (sequence, NUM_RENEWALS_MAX) and said.proof == Proof()


def test_among_many_nodes_each_renews_less_often_and_leases_last_longer() -> None:
    said = own_record()
    said.sign({}, 0.0, 2_000)
    assert said.signed is not None and said.renew_seconds == 10.0 and read(said.signed).lease_seconds == 30.0
    assert said.renew(10.0, 3_900), "not for every one who comes or goes"
    assert not said.renew(20.0, 10_000)
    said.sign({}, 20.0, 10_000)
    assert read(said.signed).renew_seconds == said.renew_seconds == 50.0 and read(said.signed).lease_seconds == 150.0
    assert said.renew(70.0, 10_000) and said.proof.number == 1
    assert not said.renew(120.0, 4_000)


def test_links_of_a_life_before_renew_nothing_of_a_record_with_the_same_number() -> None:
    """The clock was set back, so that the numbers of two lives meet: what one has shown is known to all."""
    first, second = own_record(), own_record(WALL + 0.0001)
    first.sign({}, 0.0, 3)
    second.sign({"swarm": b"other"}, 0.0, 3)
    assert first.sequence == second.sequence and first.signed is not None and second.signed is not None
    first.renew(10.0, 3)
    held = book().offer(second.signed, now=0.0)
    assert held is not None
    with pytest.raises(BadRecord):
        book().renew(held, first.proof, 10.0)


def test_a_chain_that_is_too_long_is_believed_to_its_allowed_length() -> None:
    """Its subject may make it as long as it likes; what counts renewals has one byte for them."""
    links = [bytes(LINK_BYTES)]
    for _ in range(300):
        links.append(toward_anchor(NODE.peer, links[-1], 1))
    links.reverse()
    kept = book()
    held = kept.offer(signed(anchor=links[0], renew_seconds=0.1), now=0.0)
    assert held is not None
    assert kept.renew(held, Proof(NUM_RENEWALS_MAX, links[NUM_RENEWALS_MAX]), 12.0)
    for number in (NUM_RENEWALS_MAX + 1, 240, 300):
        with pytest.raises(BadRecord):
            kept.renew(held, Proof(number, links[number]), 20.0)
    assert kept.known() == held.mark + bytes([NUM_RENEWALS_MAX])


def test_marks_name_what_was_signed() -> None:
    assert mark_of(signed()) == mark_of(signed()) != mark_of(signed(site="eu"))
