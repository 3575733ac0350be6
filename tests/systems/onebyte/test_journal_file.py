"""The journal file: what is written is read; what was altered, moved, cut off or forged is refused with its place."""

import re
from io import BytesIO

import msgspec
import pytest

from farflung.systems.onebyte.edit import write_journal
from farflung.systems.onebyte.header import TensorShape, decode_header, encode_header
from farflung.systems.onebyte.journal import LENGTH, MAGIC, Damaged, JournalWriter, read_journal
from farflung.systems.onebyte.records import (
    Part,
    Participant,
    Revocation,
    Seal,
    decode_record,
    encode_record,
)
from tests.onebyte_journals import (
    SEQUENCER,
    bare_header,
    header_for,
    identity_of,
    invented_codes,
    invented_journal,
    tiny_model,
)

HEADER = bare_header(TensorShape("weight", (8, 6)))
JOURNAL = invented_journal(HEADER)


def read(content: bytes, *, is_unfinished_allowed: bool = False) -> None:
    read_journal(BytesIO(content), name="x.flj", is_unfinished_allowed=is_unfinished_allowed)


def frames_of(content: bytes) -> list[bytes]:
    """The frames of a file, whole."""
    frames, position = [], len(MAGIC)
    while position < len(content):
        length = LENGTH.unpack(content[position : position + 4])[0] + 12
        frames.append(content[position : position + length])
        position += length
    return frames


def test_what_is_written_is_read() -> None:
    (section,) = read_journal(BytesIO(JOURNAL.content), name="x.flj")
    assert section.header == HEADER and section.ledger.is_closed
    assert section.ledger.num_entries == sum(len(record.codes) for record in section.rounds) == 68
    file = BytesIO()
    write_journal(file, [section])
    assert file.getvalue() == JOURNAL.content


def test_every_altered_byte_is_refused_with_its_place() -> None:
    starts = [len(MAGIC)]
    for frame in frames_of(JOURNAL.content):
        starts.append(starts[-1] + len(frame))
    for position in range(len(MAGIC), len(JOURNAL.content), 3):
        altered = bytearray(JOURNAL.content)
        altered[position] ^= 1 << position % 8
        with pytest.raises(Damaged, match=r"x\.flj") as refusal:
            read(bytes(altered))
        record = max(number for number, start in enumerate(starts) if start <= position)
        told = re.search(r"record (\d+) \(byte (\d+)\)", str(refusal.value))
        assert told is not None and (int(told[1]), int(told[2])) == (record, starts[record])


def test_every_cut_is_refused() -> None:
    for length in range(len(JOURNAL.content)):
        with pytest.raises(Damaged):
            read(JOURNAL.content[:length])


def test_a_cut_between_records_is_an_unfinished_journal() -> None:
    content = MAGIC + b"".join(frames_of(JOURNAL.content)[:-3])
    with pytest.raises(Damaged, match=r"no end after round 5.*--unfinished"):
        read(content)
    read(content, is_unfinished_allowed=True)


def test_moved_records_are_refused() -> None:
    frames = frames_of(JOURNAL.content)
    frames[5], frames[6] = frames[6], frames[5]
    with pytest.raises(Damaged, match=r"record 5 .*altered, moved or removed"):
        read(MAGIC + b"".join(frames))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no journal"),
        (b"PK\3\4 something else entirely", "is no journal"),
        (MAGIC, "before its header"),
        (MAGIC + LENGTH.pack(1 << 30) + bytes(40), "its length cannot be"),
        (MAGIC + LENGTH.pack(4) + bytes(12), "record 0"),
    ],
)
def test_what_is_no_journal_is_refused(content: bytes, sentence: str) -> None:
    with pytest.raises(Damaged, match=sentence):
        read(content)


def test_a_header_that_inflates_beyond_bounds_is_refused() -> None:
    import zlib

    bomb = zlib.compress(bytes(1 << 26), 9)
    with pytest.raises(Damaged, match="too large"):
        read(MAGIC + LENGTH.pack(len(bomb)) + bomb + bytes(8))


PARTS: dict[str, tuple[tuple[Part, ...], str]] = {
    "a slot twice": ((Part(0, 0, 0, b"11"), Part(1, 0, 1, b"1")), "second time"),
    "slots that there are not": ((Part(0, 0, 11, b"11"),), "slots that there are not"),
    "a slot before the first": ((Part(0, 0, -1, b"11"),), "slots that there are not"),
    "nothing": ((Part(0, 0, 0, b""),), "slots that there are not"),
    "a round to come": ((Part(0, 1, 0, b"11"),), "which cannot be"),
    "a stranger": ((Part(5, 0, 0, b"11"),), "nobody has named"),
}


@pytest.mark.parametrize("what", PARTS)
def test_a_writer_refuses(what: str) -> None:
    parts, sentence = PARTS[what]
    writer = JournalWriter(BytesIO(), HEADER)
    for number in range(2):
        writer.add(Participant(identity_of(number).public_key, ""))
    with pytest.raises(ValueError, match=sentence):
        writer.add_round(parts)


@pytest.mark.parametrize(
    "record", [Participant(bytes(31), "a"), Participant(bytes(32), "a\nb"), Participant(bytes(32), "a" * 300)]
)
def test_a_participant_has_a_key_and_a_name_that_can_be_shown(record: Participant) -> None:
    with pytest.raises(ValueError, match="no proper key or name"):
        JournalWriter(BytesIO(), HEADER).add(record)


def test_late_entries_have_a_limit() -> None:
    header = msgspec.structs.replace(HEADER, staleness_rounds_max=2)
    writer = JournalWriter(BytesIO(), header)
    writer.add(Participant(identity_of(0).public_key, ""))
    writer.add_round([Part(0, 0, 0, invented_codes(0, 2))])
    writer.add_round([])
    writer.add_round([Part(0, 0, 2, invented_codes(0, 2))])
    with pytest.raises(ValueError, match="second time"):
        writer.add_round([Part(0, 1, 0, b"1"), Part(0, 1, 0, b"1")])
    fresh = JournalWriter(BytesIO(), header)
    fresh.add(Participant(identity_of(0).public_key, ""))
    for _ in range(3):
        fresh.add_round([])
    with pytest.raises(ValueError, match="entries of round 0, which cannot be"):
        fresh.add_round([Part(0, 0, 0, b"1")])


def test_an_unsigned_journal_cannot_be_closed() -> None:
    writer = JournalWriter(BytesIO(), HEADER)
    writer.add(Participant(identity_of(0).public_key, "eu"))
    writer.add_round([Part(0, 0, 0, b"11")])
    with pytest.raises(ValueError, match=r"0 \(eu\) has not signed"):
        writer.close(SEQUENCER)
    writer.seal(0, identity_of(0))
    with pytest.raises(ValueError, match="the sequencer did not sign"):
        writer.close(identity_of(0))


def test_the_sequencers_word_stands_in_for_who_died() -> None:
    file = BytesIO()
    writer = JournalWriter(file, HEADER)
    writer.add(Participant(identity_of(0).public_key, "eu"))
    writer.add_round([Part(0, 0, 0, b"11")])
    with pytest.raises(ValueError, match="the sequencer did not sign for"):
        writer.add(writer.ledger.vouch(0, identity_of(0)))
    writer.add(writer.ledger.vouch(0, SEQUENCER))
    writer.close(SEQUENCER)
    file.seek(0)
    (section,) = read_journal(file, name="x.flj")
    assert section.ledger.num_vouched == 2


def test_references_are_medians_of_the_round_before() -> None:
    writer = JournalWriter(BytesIO(), HEADER)
    writer.add(Participant(identity_of(0).public_key, ""))
    rounds = [writer.add_round([Part(0, number, 0, codes)]) for number, codes in enumerate([b"\x20\x22\x24", b"\x40"])]
    rounds.append(writer.add_round([]))
    rounds.append(writer.add_round([Part(0, 3, 0, b"\x50")]))
    assert [record.reference for record in rounds] == [0x22, 0x22, 0x40, 0x40]


def test_the_overhead_is_small() -> None:
    """160 rounds of 64 entries with a header of a small transformer: under 16 KB, as the milestone's toy asks."""
    header = header_for(tiny_model(), num_slots=64)
    journal = invented_journal(header, num_rounds=161, num_participants=1, seal_every=32)
    assert journal.section.ledger.num_entries >= 10_240
    assert len(journal.content) < 16 * 1024


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"run": b"short"}, "lengths"),
        ({"tensors": ()}, "names no tensors"),
        ({"tensors": (TensorShape("a", (2,)), TensorShape("a", (2,)))}, "twice"),
        ({"tensors": (TensorShape("a", ()),)}, "no shape"),
        ({"tensors": (TensorShape("a", (0, 3)),)}, "no shape"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"exponent": 99}, "exponent"),
        ({"num_slots": 0}, "slots"),
        ({"dtype": "int3"}, "type of numbers"),
        ({"coefficient_max": 128}, "clipping"),
        ({"format": 2}, "format 2"),
        ({"base_name": "gpt2\x1b[2J"}, "cannot be shown"),
        ({"tensors": (TensorShape("a", (1 << 20, 1 << 20)),)}, "too large"),
    ],
)
def test_headers_that_cannot_be_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        msgspec.structs.replace(HEADER, **changes).__post_init__()
    assert decode_header(encode_header(HEADER)) == HEADER


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x93\x02\x00", encode_record(Seal(0, 1, b"x")) + b"\0"])
def test_what_is_no_record_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no record"):
        decode_record(content)


def test_a_revocation_may_follow_the_end_and_nothing_else() -> None:
    (section,) = read_journal(BytesIO(JOURNAL.content), name="x.flj")
    section.ledger.take(Revocation(1, 0, 3, "noise"), section.chain)
    assert section.ledger.is_revoked(1, 2) and not section.ledger.is_revoked(1, 3)
    with pytest.raises(ValueError, match="rounds that there are not"):
        section.ledger.take(Revocation(1, 0, 7, ""), section.chain)
