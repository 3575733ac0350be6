"""The journal file (`.flj`): a fine-tune as a chain of hashed records, read and written as a stream.

    MAGIC
    frame of the header     length (4 bytes) | deflated header | check (8)
    frame of a record       length (4 bytes) | record          | check (8)
    ...

After each record the chain is BLAKE2b(chain before, record), beginning with the header's hash; a check is the first
8 bytes of the chain there, so that damage is found where it is. Who edits a file can make the checks anew, but not the
signatures, which cover the entries and, at the end, the whole chain.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from farflung.systems.onebyte.header import HASH_BYTES, Header, decode_header, encode_header, header_hash
from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.records import Part, Record, Round, Section, Summed, decode_record, encode_record
from farflung.wire.identity import Identity

MAGIC = b"farflung journal\n"
CHECK_BYTES = 8
RECORD_BYTES_MAX = 1 << 24
LENGTH = struct.Struct("<I")


class Damaged(ValueError):
    """A journal that is not what its authors wrote; the sentence names the place."""


class Chain:
    """The running hash of a journal."""

    def __init__(self, header: Header) -> None:
        self.hash = header_hash(header)

    def extend(self, content: bytes) -> None:
        """One more record's bytes."""
        self.hash = hashlib.blake2b(self.hash + content, digest_size=HASH_BYTES, person=b"farflung chain").digest()

    @property
    def check(self) -> bytes:
        """What follows a record in a file."""
        return self.hash[:CHECK_BYTES]


class JournalWriter:
    """Writes one journal; each record is checked before it is written."""

    def __init__(self, file: BinaryIO, header: Header, *, is_first: bool = True) -> None:
        """`is_first`: False for one that follows a `Section` in the same file."""
        self.ledger = Ledger(header)
        self._file = file
        self._chain = Chain(header)
        if is_first:
            file.write(MAGIC)
        self._write(zlib.compress(encode_header(header), 9))

    def add(self, record: Record) -> None:
        """Write one record.

        Raises:
            ValueError: it cannot follow those before it.
        """
        if not isinstance(record, Section):
            self.ledger.take(record, self._chain.hash)
        content = encode_record(record)
        assert len(content) <= RECORD_BYTES_MAX
        self._chain.extend(content)
        self._write(content)

    def add_round(self, parts: Iterable[Part]) -> Round:
        """Write the next round with its reference."""
        parts = tuple(parts)
        codes = b"".join(part.codes for part in parts)
        record = Round(self.ledger.num_rounds, self.ledger.reference_for(codes), parts)
        self.add(record)
        return record

    def seal(self, participant: int, identity: Identity) -> None:
        """Write a participant's signature under its entries so far."""
        self.add(self.ledger.seal(participant, identity))

    def close(self, identity: Identity) -> None:
        """Write the sequencer's signature under all of it."""
        self.add(self.ledger.close(identity, self._chain.hash))

    def _write(self, content: bytes) -> None:
        self._file.write(LENGTH.pack(len(content)) + content + self._chain.check)


@dataclass(slots=True)
class JournalSection:
    """One run of a journal file, checked."""

    header: Header
    ledger: Ledger
    records: list[Record] = field(default_factory=list)
    chain: bytes = b""
    """Hash of all of it."""
    num_rounds_skipped: int = 0
    """Rounds at its beginning that a section before it holds already."""

    @property
    def rounds(self) -> list[Round | Summed]:
        """All committed rounds in order."""
        return [record for record in self.records if isinstance(record, Round | Summed)]

    def counted(self) -> Iterator[tuple[Round, Part]]:
        """The parts that make up the update, but for sums: neither skipped nor revoked."""
        for record in self.rounds[self.num_rounds_skipped :]:
            if isinstance(record, Round):
                for part in record.parts:
                    if not self.ledger.is_revoked(part.participant, record.number):
                        yield record, part


def read_journal(file: BinaryIO, *, name: str, is_unfinished_allowed: bool = False) -> list[JournalSection]:
    """Read and check a journal: its chain, its rules, its signatures, its end.

    `name` is told in errors. `is_unfinished_allowed`: also a journal that is still being written, whose last entries
    may be unsigned.

    Raises:
        Damaged: names the record and byte where the file stops being a journal, or what its end lacks.
    """
    sections: list[JournalSection] = []
    chain: Chain | None = None
    for frame in _frames(file, name):
        if chain is None:
            header = frame.header()
            chain = Chain(header)
            skipped = _skipped(sections)
            sections.append(JournalSection(header, Ledger(header), num_rounds_skipped=skipped))
            frame.require(chain.check == frame.check, "the header was altered")
            continue
        record = frame.record()
        hash_before = chain.hash
        chain.extend(frame.content)
        frame.require(chain.check == frame.check, "it, or what stands before it, was altered, moved or removed")
        sections[-1].records.append(record)
        sections[-1].chain = chain.hash
        if isinstance(record, Section):
            chain = None
        else:
            frame.take(sections[-1].ledger, record, hash_before)
    if chain is None:
        raise Damaged(f"{name} ends before a header: it was cut off")
    for number, section in enumerate(sections):
        _require_end(section, name, number, is_unfinished_allowed)
    return sections


def _skipped(sections: list[JournalSection]) -> int:
    if not sections:
        return 0
    last = sections[-1].records[-1]
    assert isinstance(last, Section)
    return last.num_rounds_skipped


def _require_end(section: JournalSection, name: str, number: int, is_unfinished_allowed: bool) -> None:
    where = f"{name} (run {section.header.run_name[:8]})" if number else name
    if not section.ledger.is_closed and not is_unfinished_allowed:
        raise Damaged(
            f"{where} has no end after round {section.ledger.num_rounds - 1}: it was cut off, or its run is still "
            f"going on (then say --unfinished)"
        )
    if not 0 <= section.num_rounds_skipped <= section.ledger.num_rounds:
        raise Damaged(f"{where} skips more rounds than there are")


@dataclass(frozen=True, slots=True)
class _Frame:
    name: str
    number: int
    position: int
    content: bytes
    check: bytes

    def header(self) -> Header:
        try:
            inflater = zlib.decompressobj()
            content = inflater.decompress(self.content, RECORD_BYTES_MAX)
            self.require(inflater.eof and not inflater.unused_data, "the header is cut off or too large")
            return decode_header(content)
        except (ValueError, zlib.error) as error:
            raise self._damaged(str(error)) from None

    def record(self) -> Record:
        try:
            return decode_record(self.content)
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def take(self, ledger: Ledger, record: Record, chain: bytes) -> None:
        try:
            ledger.take(record, chain)
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def require(self, condition: bool, sentence: str) -> None:
        if not condition:
            raise self._damaged(sentence)

    def _damaged(self, sentence: str) -> Damaged:
        return Damaged(f"{self.name} is damaged at record {self.number} (byte {self.position}): {sentence}")


def _frames(file: BinaryIO, name: str) -> Iterator[_Frame]:
    if file.read(len(MAGIC)) != MAGIC:
        raise Damaged(f"{name} is no journal: give a .flj file")
    position, number = len(MAGIC), 0
    while start := file.read(LENGTH.size):
        length = LENGTH.unpack(start)[0] if len(start) == LENGTH.size else 0
        if length > RECORD_BYTES_MAX:
            raise Damaged(f"{name} is damaged at record {number} (byte {position}): its length cannot be")
        content, check = file.read(length), file.read(CHECK_BYTES)
        if len(start) < LENGTH.size or len(content) < length or len(check) < CHECK_BYTES:
            raise Damaged(f"{name} is cut off within record {number} (byte {position}): take it from its author again")
        yield _Frame(name, number, position, content, check)
        position, number = position + LENGTH.size + length + CHECK_BYTES, number + 1
    if not number:
        raise Damaged(f"{name} is cut off before its header: take it from its author again")
