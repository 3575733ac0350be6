"""Records: what a node says about itself, signed by its own key, numbered, and good for a lease.

Whoever holds a record can check it without asking anybody. Of one subject the highest sequence counts; a record that
is not renewed (`renewals`) is gone when its lease ends, counted on the holder's own clock from when it got it.
"""

import msgspec

from farflung.mesh.renewals import LINK_BYTES
from farflung.wire.certificate import TicketRole
from farflung.wire.identity import BadSignature, Identity, Signed
from farflung.world.address import PeerId
from farflung.world.doors import Contact

PURPOSE = "record"

RECORD_BYTES_MAX = 16 * 1024
TOPICS_MAX = 32
TOPIC_NAME_LENGTH_MAX = 64
ENDPOINTS_MAX = 16
ENDPOINT_LENGTH_MAX = 260
RELAYS_MAX = 16
SITE_LENGTH_MAX = 64
LEASE_SECONDS_MAX = 3600.0

CLOCK_ERROR_SECONDS_MAX = 300.0
"""Wall clocks of honest machines differ by less than this; a record outside of it is a replay or a broken clock."""


class BadRecord(ValueError):
    """A record that is forged, oversized, impossible, or from another time."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one node says about itself."""

    peer: PeerId
    """Who speaks; the hash of the key that signs."""
    sequence: int
    """Higher replaces lower. Starts from the wall clock in milliseconds, so that a restarted node goes on upward."""
    issued_at: float
    """Wall-clock seconds at the speaker."""
    lease_seconds: float
    """For how long it holds without being renewed."""
    renew_seconds: float = 0.0
    """Between two of its renewals."""
    anchor: bytes = b""
    """The end of the chain that its renewals are links of (16 bytes); empty: it is never renewed."""
    role: TicketRole
    contact: Contact = Contact()
    site: str = ""
    """Machines of one site are near each other."""
    is_rendezvous: bool = False
    """It keeps the directory for others."""
    is_goodbye: bool = False
    """It leaves: nothing of it is to be expected any more."""
    topics: dict[str, bytes] = {}
    """What systems announce, by name, such as "swarm"."""

    def sign(self, identity: Identity) -> Signed:
        """The envelope to send.

        Raises:
            BadRecord: over a limit; nobody would take it.
        """
        assert identity.peer == self.peer, "a node signs only what it says about itself"
        check_limits(self)
        signed = identity.sign(PURPOSE, msgspec.msgpack.encode(self))
        if len(signed.content) > RECORD_BYTES_MAX:
            raise BadRecord(f"a record of {len(signed.content)} bytes is over the limit of {RECORD_BYTES_MAX}")
        return signed


def check_limits(record: Record) -> None:
    """Raises BadRecord when a field is longer than anybody accepts."""
    contact = record.contact
    lengths = [
        ("topics", len(record.topics), TOPICS_MAX),
        ("characters in a topic's name", max(map(len, record.topics), default=0), TOPIC_NAME_LENGTH_MAX),
        ("endpoints", len(contact.endpoints), ENDPOINTS_MAX),
        ("characters in an endpoint", max(map(len, contact.endpoints), default=0), ENDPOINT_LENGTH_MAX),
        ("relays", len(contact.relays), RELAYS_MAX),
        ("characters in the site's name", len(record.site), SITE_LENGTH_MAX),
    ]
    for what, length, limit in lengths:
        if length > limit:
            raise BadRecord(f"a record has {length} {what}; the limit is {limit}")
    if not 0 < record.lease_seconds <= LEASE_SECONDS_MAX:
        raise BadRecord(f"a lease of {record.lease_seconds} s is not between 0 and {LEASE_SECONDS_MAX:g} s")
    if len(record.anchor) not in (0, LINK_BYTES) or not 0 <= record.renew_seconds < record.lease_seconds:
        raise BadRecord("a record says how it is renewed in a way that nobody understands")


def read(signed: Signed) -> Record:
    """The record inside, its form checked but not its signature: see `verify`.

    Raises:
        BadRecord: too long, not a record, or over a limit.
    """
    if len(signed.content) > RECORD_BYTES_MAX:
        raise BadRecord(f"a record of {len(signed.content)} bytes is over the limit of {RECORD_BYTES_MAX}")
    try:
        record = msgspec.msgpack.decode(signed.content, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecord(f"a record cannot be read: {error}") from None
    check_limits(record)
    return record


def verify(signed: Signed, record: Record) -> None:
    """Check that `record` (from `read`) is its subject's word.

    Raises:
        BadRecord: altered, or signed by another than its subject.
    """
    try:
        author, _ = signed.open(PURPOSE)
    except BadSignature as error:
        raise BadRecord(str(error)) from None
    if author != record.peer:
        raise BadRecord(f"{author} signed a record about {record.peer}")


def verify_time(record: Record, number: int, wall: float) -> None:
    """Check that a record, or its renewal of that number, is from about `wall` (wall-clock seconds).

    Raises:
        BadRecord: it is from another time.
    """
    said_at = record.issued_at + number * record.renew_seconds
    if said_at > wall + CLOCK_ERROR_SECONDS_MAX:
        raise BadRecord(f"the clock of {record.peer} is ahead by {said_at - wall:.0f} s")
    if said_at + record.lease_seconds + CLOCK_ERROR_SECONDS_MAX < wall:
        raise BadRecord(f"a record of {record.peer} ended {wall - said_at - record.lease_seconds:.0f} s ago")


def says_the_same(before: Record | None, after: Record | None) -> bool:
    """Whether the one only renews the lease of the other."""
    if before is None or after is None:
        return before is after
    renewed = msgspec.structs.replace(
        before,
        sequence=after.sequence,
        issued_at=after.issued_at,
        anchor=after.anchor,
        renew_seconds=after.renew_seconds,
    )
    return renewed == after
