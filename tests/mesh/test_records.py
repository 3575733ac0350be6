"""Signed records and the book that keeps the newest: what is forged, old, early, oversized or replayed stays out."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farflung.mesh.book import RecordBook
from farflung.mesh.records import RECORD_BYTES_MAX, BadRecord, Record, read, says_the_same, verify
from farflung.wire.certificate import TicketRole
from farflung.wire.identity import Signed
from farflung.world.doors import Contact
from tests.mesh.swarm import identity

WALL = 1_700_000_000.0


def record(name: str = "node", **changes: Any) -> Record:
    plain = Record(
        peer=identity(name).peer, sequence=1, issued_at=WALL, lease_seconds=30.0, role=TicketRole.SERVER, site="eu"
    )
    return msgspec.structs.replace(plain, **changes)


def book(*, num_records_max: int = 10) -> RecordBook:
    return RecordBook(wall_offset_seconds=WALL, num_records_max=num_records_max)


def test_a_signed_record_is_read_back_and_verified() -> None:
    contact = Contact(endpoints=("host:1",), relays=(identity("relay").peer,))
    said = record(contact=contact, topics={"swarm": b"\x00\xff"}, is_rendezvous=True)
    signed = said.sign(identity("node"))
    assert read(signed) == said
    verify(signed, said)


@pytest.mark.parametrize(
    "changes",
    [
        {"topics": {f"topic-{number}": b"" for number in range(33)}},
        {"topics": {"x" * 65: b""}},
        {"topics": {"swarm": bytes(RECORD_BYTES_MAX)}},
        {"contact": Contact(endpoints=("host:1",) * 17)},
        {"contact": Contact(endpoints=("h" * 261,))},
        {"site": "x" * 65},
        {"lease_seconds": 0.0},
        {"lease_seconds": 1e9},
        {"lease_seconds": float("nan")},
    ],
)
def test_records_over_a_limit_are_neither_made_nor_read(changes: dict[str, Any]) -> None:
    node = identity("node")
    with pytest.raises(BadRecord):
        record(**changes).sign(node)
    with pytest.raises(BadRecord):
        read(node.sign("record", msgspec.msgpack.encode(record(**changes))))


def test_every_altered_byte_is_noticed() -> None:
    signed = record().sign(identity("node"))
    for index in range(len(signed.content)):
        content = bytearray(signed.content)
        content[index] ^= 1
        forged = Signed(signed.public_key, bytes(content), signed.signature)
        with pytest.raises(BadRecord):
            verify(forged, read(forged))


def test_a_signature_for_another_purpose_or_by_another_node_does_not_count() -> None:
    content = msgspec.msgpack.encode(record())
    for signed in (identity("node").sign("greeting", content), identity("other").sign("record", content)):
        with pytest.raises(BadRecord):
            verify(signed, read(signed))


@given(st.binary(max_size=200))
def test_garbage_is_a_bad_record_and_nothing_worse(content: bytes) -> None:
    with pytest.raises(BadRecord):
        signed = identity("node").sign("record", content)
        verify(signed, read(signed))


def test_a_book_takes_news_only_and_never_goes_back() -> None:
    node, kept = identity("node"), book()
    first, second = record(sequence=1).sign(node), record(sequence=2).sign(node)
    assert kept.offer(second, now=0.0) is not None
    assert kept.offer(first, now=0.0) is None and kept.offer(second, now=0.0) is None
    held = kept.get(node.peer)
    assert held is not None and held.version == (2, 0)
    assert kept.next_expiry() == 30.0
    assert [held.record.sequence for held in kept.expire(30.0)] == [2]
    assert len(kept) == 0
    # What has expired does not come back by being passed on once more.
    assert kept.offer(second, now=31.0, seconds_left=29.0) is None


def test_what_another_holder_passes_on_ends_no_later_than_there() -> None:
    kept = book()
    held = kept.offer(record().sign(identity("node")), now=0.0, seconds_left=4.0)
    assert held is not None and held.expires_at == 4.0
    other = kept.offer(record("other").sign(identity("other")), now=0.0, seconds_left=1e9)
    assert other is not None and other.expires_at == 30.0
    assert kept.offer(record("late").sign(identity("late")), now=0.0, seconds_left=0.0) is None


def test_a_book_has_a_limit_and_takes_renewals_beyond_it() -> None:
    kept = book(num_records_max=2)
    for name in ("a", "b"):
        assert kept.offer(record(name).sign(identity(name)), now=0.0) is not None
    with pytest.raises(BadRecord, match="limit"):
        kept.offer(record("c").sign(identity("c")), now=0.0)
    assert kept.offer(record("a", sequence=2).sign(identity("a")), now=1.0) is not None


def test_records_from_another_time_are_refused() -> None:
    node, kept = identity("node"), book()
    for issued_at, word in ((WALL - 331.0, "ended"), (WALL + 301.0, "ahead")):
        with pytest.raises(BadRecord, match=word):
            kept.offer(record(issued_at=issued_at).sign(node), now=0.0)
    assert kept.offer(record(issued_at=WALL - 200.0).sign(node), now=0.0) is not None


def test_a_goodbye_is_held_but_not_live() -> None:
    kept = book()
    kept.offer(record(is_goodbye=True).sign(identity("node")), now=0.0)
    assert len(kept) == 1 and kept.live() == {}


def test_a_renewal_says_the_same() -> None:
    assert says_the_same(record(), record(sequence=9, issued_at=WALL + 9))
    assert not says_the_same(record(), record(topics={"swarm": b""}))
    assert not says_the_same(None, record()) and says_the_same(None, None)
