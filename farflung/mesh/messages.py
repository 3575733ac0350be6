"""Messages of the directory: between members and rendezvous nodes, and among rendezvous nodes."""

import msgspec

from farflung.wire.identity import Signed
from farflung.wire.message import Message
from farflung.wire.revocation import Revocation
from farflung.world.address import PeerId

RENDEZVOUS_ACTOR = "rendezvous"
DIRECTORY_ACTOR = "directory"
REACH_ACTOR = "reach"
CHRONICLE_ACTOR = "chronicle"
REVOCATIONS_ACTOR = "revocations"


class Lease(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A record as one holder passes it on to another."""

    signed: Signed
    seconds_left: float
    """What is left of its lease at the sender."""


class Announce(Message, frozen=True, kw_only=True):
    """A node gives its own newest record to a rendezvous node."""

    signed: Signed


class Announced(Message, frozen=True, kw_only=True):
    """The rendezvous node holds that record, or a newer one."""

    sequence: int


class Subscribe(Message, frozen=True, kw_only=True):
    """A member wants all records and every change; sent again from time to time, which also tells that it is there."""

    stream: int
    """The stream that it follows; 0: none yet."""
    number: int
    """The last part of the stream that it has got without a gap; -1: none yet."""


class Subscribed(Message, frozen=True, kw_only=True):
    """The stream goes on; the member has missed nothing, as far as can be told."""

    stream: int


class Changes(Message, frozen=True, kw_only=True):
    """One part of a stream: records that are new to the subscriber."""

    stream: int
    """A new stream begins with everything that the rendezvous node holds."""
    number: int
    """Parts of a stream count from 0."""
    records: list[Lease]


class Compare(Message, frozen=True, kw_only=True):
    """A rendezvous node tells another what it holds, to be given what it lacks."""

    sequences: dict[PeerId, int]


class Fill(Message, frozen=True, kw_only=True):
    """Records that the asking rendezvous node lacked."""

    records: list[Lease]


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
