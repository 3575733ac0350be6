"""Messages of the directory: between members and rendezvous nodes, and among rendezvous nodes."""

import msgspec

from farflung.wire.identity import Signed
from farflung.wire.message import Message
from farflung.wire.revocation import Revocation

RENDEZVOUS_ACTOR = "rendezvous"
DIRECTORY_ACTOR = "directory"
REACH_ACTOR = "reach"
CHRONICLE_ACTOR = "chronicle"
REVOCATIONS_ACTOR = "revocations"


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """That a record's subject still stood by it, after so many renewals (`renewals`)."""

    number: int = 0
    """0: as it was signed."""
    link: bytes = b""


UNRENEWED = Proof()


class Lease(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A record as one holder passes it on to another."""

    signed: Signed
    seconds_left: float
    """What is left of its lease at the sender."""
    proof: Proof = UNRENEWED


class Renewal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A lease that was renewed, of a record that the other holds: many of them travel together."""

    mark: bytes
    """Short name of the record (`renewals.mark_of`)."""
    milliseconds_left: int
    """Of its lease, at the sender."""
    number: int
    link: bytes


class Announce(Message, frozen=True, kw_only=True):
    """A node gives its own newest record to a rendezvous node."""

    signed: Signed
    proof: Proof = UNRENEWED


class Renew(Message, frozen=True, kw_only=True):
    """A node renews the lease of its record at a rendezvous node that holds it."""

    mark: bytes
    proof: Proof


class Announced(Message, frozen=True, kw_only=True):
    """What the rendezvous node holds now of the node that has spoken."""

    sequence: int
    """-1: nothing."""
    number: int = 0
    """Of its renewal."""


class Subscribe(Message, frozen=True, kw_only=True):
    """A member wants all records and every change; sent again from time to time, which also tells that it is there."""

    stream: int
    """The stream that it follows; 0: none yet."""
    number: int
    """The last part of the stream that it has got without a gap; -1: none yet."""
    known: bytes = b""
    """With stream 0: what it holds and need not be told again (`RecordBook.known`)."""


class Unsubscribe(Message, frozen=True, kw_only=True):
    """The member follows another rendezvous node now."""


class Subscribed(Message, frozen=True, kw_only=True):
    """The stream goes on."""

    stream: int
    number: int
    """Of its newest part: parts arrive in order, so one that has not come by now has been lost."""


class Changes(Message, frozen=True, kw_only=True):
    """One part of a stream: what is new to the subscriber."""

    stream: int
    """A new stream begins with everything that the rendezvous node holds and the member does not."""
    number: int
    """Parts of a stream count from 0."""
    records: list[Lease]
    renewals: list[Renewal] = msgspec.field(default_factory=list[Renewal])


class Compare(Message, frozen=True, kw_only=True):
    """A rendezvous node tells another what it holds, to be given what it lacks."""

    numbers: dict[bytes, int]
    """How often each record was renewed, by its mark."""


class Fill(Message, frozen=True, kw_only=True):
    """What the asking rendezvous node lacked."""

    records: list[Lease]
    renewals: list[Renewal] = msgspec.field(default_factory=list[Renewal])


class ReachProbe(Message, frozen=True, kw_only=True):
    """How far away are you? Answered at once."""

    number: int


class ReachAnswer(Message, frozen=True, kw_only=True):
    """Answers the probe of that number."""

    number: int


class Decision(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a node has decided, and why."""

    number: int
    """Of the node's life, counted from 1."""
    wall_seconds: float
    """On the node's own clock."""
    actor: str
    sentence: str


class AskDecisions(Message, frozen=True, kw_only=True):
    """What have you decided lately? Answered by `Decisions`, or `Refusal` when asked too often."""

    life: float = 0.0
    """The life of the node that `after` is of."""
    after: int = 0
    """The newest one that is known already."""


class Decisions(Message, frozen=True, kw_only=True):
    """Decisions after the one that was asked for, the newest if they are too many, oldest first."""

    life: float
    """Wall-clock second at which the process began: another one counts anew."""
    decisions: list[Decision]


class CompareRevocations(Message, frozen=True, kw_only=True):
    """This is what I know of tickets withdrawn. Answered by `SameRevocations`, or by `TellRevocations`."""

    digest: bytes
    """Of what the sender knows."""


class SameRevocations(Message, frozen=True, kw_only=True):
    """The same as you."""


class TellRevocations(Message, frozen=True, kw_only=True):
    """Tickets that have been withdrawn."""

    revocations: list[Revocation]
    digest: bytes
    """Of all that the sender knows."""
    is_answer_wanted: bool = False
    """Whoever still knows something else then tells it."""
