"""What measurers, sequencers, standbys and the witness of a run say to each other.

All names begin with Byte, as names of messages are unique over the whole program.

    measurer --Join-------------> sequencer     who I am, and that I am
             --Ready------------>               what I hold of the journal: tell me more, or give me slots
             <-News--------------               committed records, and slots to measure next
             --Entries---------->               one byte for each slot
             --Signature-------->               under what of mine was committed
             --Spent------------>               my budget of privacy is spent: I follow to the end
             <-NotSequencer------               ask somebody else
             <-Cohort-------------              masked entries: measure this round together with these
             --Masked----------->               the coefficients of all its slots, under masks

    sequencer --Lead, Copy------> standby       this is the view, these are records
              <-Copied, Follow---               so much is on my disk; where do we part ways?
    either    --Propose---------> witness       the next view
              <-ViewIs-----------

What is sent often is encoded as an array with a tag of one letter: 128 entries are to cost little more than 128 bytes.
"""

import msgspec

from farflung.wire.identity import Signed
from farflung.wire.message import Message

ACTOR = "1b"
"""Actor name of sequencers and standbys; it is on every message, so it is short."""
WITNESS_ACTOR = "1bw"
CLAIM_PURPOSE = "onebyte participant"


class View(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who orders, and whose copies a record needs before it counts."""

    epoch: int
    sequencer: str
    standbys: tuple[str, ...]


class ByteJoin(Message, kw_only=True):
    """I want to measure for this run."""

    run: bytes
    """Hash of the header."""
    code: str
    """Version of the program."""
    name: str
    claim: Signed
    """The peer's name, signed with the key that will sign its entries."""
    instance: str
    """Different in each life."""
    mask_key: Signed | None = None
    """Of this life, if entries of the run are masked."""


class ByteReady(Message, kw_only=True, array_like=True, tag="r"):
    """So far I hold the journal: send what follows, or slots."""

    num_records: int
    check: bytes
    """The first bytes of the chain's hash there."""


class ByteSpent(Message, kw_only=True):
    """My budget of privacy is spent: I follow to the end, and measure no more."""


class ByteNews(Message, kw_only=True, array_like=True, tag="n"):
    """Committed records, and slots of the round after them."""

    first_record: int
    records: tuple[bytes, ...]
    check: bytes
    """Of the chain after them."""
    slots: tuple[int, ...]
    """First and number, first and number, ...: measure these, in this order, unless you have."""


class ByteEntries(Message, kw_only=True, array_like=True, tag="e"):
    """Measured bytes of consecutive slots."""

    place: int
    """Round times slots of a round plus the first slot."""
    codes: bytes


class ByteCohort(Message, kw_only=True, array_like=True, tag="c"):
    """A round is measured by these alone, whose masks cancel."""

    round_number: int
    check: bytes
    """The first bytes of the cohort's hash."""
    members: tuple[Signed, ...]
    """Their mask keys; empty: the cohort is that of a round before."""


class ByteMasked(Message, kw_only=True, array_like=True, tag="k"):
    """All that a member has measured in a round."""

    round_number: int
    check: bytes
    """Of the cohort whose masks are on it."""
    values: bytes
    """Integers modulo 2^16, little-endian: a coefficient of each slot, and their mean size."""


class ByteSignature(Message, kw_only=True):
    """A measurer's signature under its parts of rounds before `end_round` that have none."""

    end_round: int
    signature: bytes
    state: bytes
    """The first bytes of the hash of its accumulators after those rounds."""


class ByteNotSequencer(Message, kw_only=True):
    """I do not order this journal now."""

    sequencer: str
    """Who does, as far as I know; empty: I do not know."""


class ByteLead(Message, kw_only=True):
    """Sequencer to candidates, in regular intervals: this is the view, and I am alive."""

    view: View


class ByteCopy(Message, kw_only=True):
    """Sequencer to standby: records from `first_record` on."""

    epoch: int
    first_record: int
    check: bytes
    """Of the chain before them."""
    records: tuple[bytes, ...]


class ByteCopied(Message, kw_only=True):
    """Standby to sequencer: so many records are on my disk."""

    epoch: int
    num_records: int


class ByteFollow(Message, kw_only=True):
    """A candidate that may hold other records than the sequencer asks where they part ways."""

    epoch: int
    number: int
    """Of the question."""
    marks: tuple[tuple[int, bytes], ...]
    """Numbers of records, and the chain's hash after so many, falling."""


class ByteResume(Message, kw_only=True):
    """The sequencer's journal agrees with yours in the first `num_records`: forget the others."""

    epoch: int
    number: int
    num_records: int


class BytePropose(Message, kw_only=True):
    """A member of a view to the witness: let this be the next."""

    view: View


class ByteViewIs(Message, kw_only=True):
    """The witness's answer."""

    view: View
