"""What a journal is made of after its header: participants, committed rounds, signatures, revocations, and an end."""

import hashlib
import re

import msgspec
import numpy as np

from farflung.systems.onebyte.header import HASH_BYTES

SEAL_PURPOSE = "onebyte entries"
VOUCH_PURPOSE = "onebyte entries received"
CLOSE_PURPOSE = "onebyte journal"


class Participant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Somebody who measures; known by number from here on, counted from 0."""

    public_key: bytes
    name: str


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Entries of one participant for consecutive slots."""

    participant: int
    base_round: int
    """The round whose slots they are; before the committed round for late ones."""
    first_slot: int
    codes: bytes
    """One byte per slot."""


class Round(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """A committed round: what it holds is applied, whoever else was asked."""

    number: int
    """Counted from 0 without gaps."""
    reference: int
    """The code that is worth one unit: the median of the last earlier round that has entries, or its own."""
    parts: tuple[Part, ...]

    @property
    def codes(self) -> bytes:
        """All entries."""
        return b"".join(part.codes for part in self.parts)


class Seal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """A participant's signature under its parts of committed rounds before `end_round` that have none yet.

    It covers many messages of many rounds, and may come when later rounds are committed already.
    """

    participant: int
    end_round: int
    signature: bytes


class Revocation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """What a participant contributed in committed rounds [first_round, end_round) counts no more."""

    participant: int
    first_round: int
    end_round: int
    reason: str


class Close(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """The end of a run: the sequencer's signature under the hash chain up to here."""

    num_rounds: int
    num_entries: int
    signature: bytes


class Section(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """Another journal of the same base model follows, whose updates are added; made by merging."""

    num_rounds_skipped: int
    """Its first rounds, which the journal before it holds already."""


class Vouch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """The sequencer's signature where a participant left without its own: these parts rest on the sequencer's word."""

    participant: int
    end_round: int
    signature: bytes


class Summed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=8):
    """A committed round of which nobody knows single entries: the sum over a cohort, as its masks left it."""

    number: int
    reference: int
    """The code that is worth one unit: moved after each sum by what the cohort says of its entries' size."""
    cohort: tuple[int, ...]
    """Participants, ascending; all of their entries are in it."""
    sums: bytes
    """Signed integers of 16 bits, little-endian: of each slot, and of each member's mean size of a coefficient."""

    @property
    def coefficients(self) -> np.ndarray:
        """Of each slot the sum over the cohort, int16 [num_slots]."""
        return np.frombuffer(self.sums, dtype="<i2")[:-1]

    @property
    def size(self) -> int:
        """The sum over the cohort of mean sizes."""
        return int(np.frombuffer(self.sums, dtype="<i2")[-1])

    @property
    def parts(self) -> tuple[Part, ...]:
        """Entries that can be told apart: none."""
        return ()

    @property
    def codes(self) -> bytes:
        """The same."""
        return b""

    def part_of(self, participant: int) -> Part:
        """What a member signs: that it took part in this sum."""
        return Part(participant, self.number, 0, self.sums)


def signed_parts(record: Round | Summed) -> tuple[Part, ...]:
    """What stands under participants' names; of a sum, all of it under each name of its cohort."""
    return tuple(record.part_of(each) for each in record.cohort) if isinstance(record, Summed) else record.parts


Record = Participant | Round | Seal | Revocation | Close | Section | Vouch | Summed
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The record's bytes."""
    return msgspec.msgpack.encode(record)


def decode_record(content: bytes) -> Record:
    """Read what `encode_record` wrote.

    Raises:
        ValueError: anything else.
    """
    try:
        return _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise ValueError(f"it is no record ({reason})") from None


class Contribution:
    """The running hash of a participant's parts, which it signs from time to time."""

    def __init__(self, header_hash: bytes) -> None:
        assert len(header_hash) == HASH_BYTES
        self._digest = hashlib.blake2b(header_hash, digest_size=HASH_BYTES, person=b"farflung entries")
        self.num_entries = 0

    def add(self, part: Part) -> None:
        """One more part, in the order of the journal."""
        place = f"{part.base_round} {part.first_slot} {len(part.codes)}\n"
        self._digest.update(place.encode() + part.codes)
        self.num_entries += len(part.codes)

    def digest(self) -> bytes:
        """What is to be signed, with the purpose `SEAL_PURPOSE`."""
        return self._digest.digest()
