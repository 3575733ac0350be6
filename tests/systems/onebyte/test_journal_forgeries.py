"""Journals that somebody without keys has changed and given new checks throughout: signatures tell, with the place."""

import zlib
from collections.abc import Callable
from io import BytesIO

import msgspec
import pytest

from farflung.systems.onebyte.header import Header, TensorShape, encode_header
from farflung.systems.onebyte.journal import LENGTH, MAGIC, Chain, Damaged, read_journal
from farflung.systems.onebyte.records import Close, Part, Participant, Record, Round, Seal, encode_record
from tests.onebyte_journals import bare_header, identity_of, invented_journal

HEADER = bare_header(TensorShape("weight", (8, 6)))
JOURNAL = invented_journal(HEADER)


def forged(change: Callable[[Header, list[Record]], tuple[Header, list[Record]]]) -> bytes:
    """A journal that somebody without keys has changed and given new checks throughout."""
    header, records = change(HEADER, list(JOURNAL.section.records))
    chain = Chain(header)
    file = BytesIO()
    start = zlib.compress(encode_header(header), 9)
    file.write(MAGIC + LENGTH.pack(len(start)) + start + chain.check)
    for record in records:
        content = encode_record(record)
        chain.extend(content)
        file.write(LENGTH.pack(len(content)) + content + chain.check)
    return file.getvalue()


def replaced(kind: type[Record], number: int, change: Callable[[Record], Record | None]) -> bytes:
    """A forgery in which the n-th record of a kind is another one, or is missing."""

    def edit(header: Header, records: list[Record]) -> tuple[Header, list[Record]]:
        place = [index for index, record in enumerate(records) if isinstance(record, kind)][number]
        new = change(records[place])
        return header, [*records[:place], *([] if new is None else [new]), *records[place + 1 :]]

    return forged(edit)


def with_parts(record: Record, parts: tuple[Part, ...]) -> Record:
    assert isinstance(record, Round)
    return Round(record.number, record.reference, parts)


def flipped(record: Record) -> Record:
    """One sign is another; the median stays."""
    assert isinstance(record, Round)
    first, *others = record.parts
    codes = bytes([first.codes[0] ^ 128]) + first.codes[1:]
    return with_parts(record, (Part(first.participant, first.base_round, first.first_slot, codes), *others))


def test_a_forgery_without_changes_is_the_journal() -> None:
    assert forged(lambda header, records: (header, records)) == JOURNAL.content


FORGERIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a byte": (lambda: replaced(Round, 2, flipped), r"node-0\) did not sign the entries .* before round 4"),
    "the seed": (
        lambda: forged(lambda header, records: (msgspec.structs.replace(header, run=bytes(16)), records)),
        "did not sign",
    ),
    "epsilon": (
        lambda: forged(lambda header, records: (msgspec.structs.replace(header, epsilon=0.5), records)),
        "did not sign",
    ),
    "a signature": (
        lambda: replaced(
            Seal, 0, lambda seal: msgspec.structs.replace(seal, signature=bytes(64)) if isinstance(seal, Seal) else None
        ),
        "did not sign",
    ),
    "the last signature": (
        lambda: replaced(
            Close, 0, lambda end: msgspec.structs.replace(end, signature=bytes(64)) if isinstance(end, Close) else None
        ),
        "the sequencer did not sign",
    ),
    "no signatures": (lambda: replaced(Seal, 0, lambda seal: None), "did not sign|has not signed"),
    "a part less": (
        lambda: replaced(
            Round, 3, lambda record: with_parts(record, record.parts[1:]) if isinstance(record, Round) else None
        ),
        "reference|did not sign",
    ),
    "a round less": (lambda: replaced(Round, 0, lambda record: None), "round 1 stands where round 0 must"),
    "a round twice": (
        lambda: forged(lambda header, records: (header, [*records[:4], records[3], *records[4:]])),
        "round 0 stands where round 1 must",
    ),
    "another name for the same key": (
        lambda: replaced(Participant, 1, lambda record: Participant(identity_of(0).public_key, "thief")),
        "there already",
    ),
    "somebody else's key": (
        lambda: replaced(Participant, 1, lambda record: Participant(identity_of(7).public_key, "thief")),
        r"1 \(thief\) did not sign",
    ),
    "another scale": (
        lambda: replaced(
            Round,
            2,
            lambda record: (
                Round(record.number, record.reference + 8, record.parts) if isinstance(record, Round) else None
            ),
        ),
        "says that its reference is",
    ),
    "records after the end": (
        lambda: forged(lambda header, records: (header, [*records, Participant(bytes(32), "late")])),
        "behind the end",
    ),
    "another total": (
        lambda: replaced(
            Close, 0, lambda end: Close(end.num_rounds, 1, end.signature) if isinstance(end, Close) else None
        ),
        "it closes 6 rounds with 1 entries",
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_forgeries_are_refused_with_the_place(what: str) -> None:
    forge, sentence = FORGERIES[what]
    with pytest.raises(Damaged, match=rf"x.flj is damaged at record \d+ \(byte \d+\): .*({sentence})"):
        read_journal(BytesIO(forge()), name="x.flj")
