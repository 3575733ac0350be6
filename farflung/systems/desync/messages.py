"""What workers and the coordinator of a run say to each other.

worker ── SyncJoin ────────> coordinator      who I am, and which round I have
       <─ SyncWelcome ──────                  what to do next, and who has the state if mine is old
       ── SyncArrive ──────>                  my steps of this round are done (again until answered)
       <─ SyncForm ─────────                  these members average this
worker ── SyncPart ───────> worker            sums on their way to a part's owner, and its mean back from there
       ── SyncReady ───────> coordinator      I have every mean
       <─ SyncCommit ───────                  so have all: apply it. SyncAbort: nobody applies it
A newcomer asks a member for its state: SyncStateAsk, SyncStateHead, SyncStatePartAsk, SyncStatePart.

Everything may be lost or come twice: whoever waits asks again, and answers are the same.
"""

import msgspec

from farflung.wire.message import Message
from farflung.wire.tensor import WireTensor
from farflung.world.address import Address, PeerId

COORDINATOR = "desync"
"""Actor name of the coordinator."""
WORKER = "desync-worker"
"""Actor name of every worker."""


class Assignment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one worker does until the next round."""

    round: int
    """How many rounds the run has behind it."""
    num_credited: int
    """Local steps behind it, over all workers."""
    first: int
    """Step of the fastest worker at which it begins."""
    num_steps: int
    """Local steps to make."""
    due: tuple[str, ...]
    """What is averaged then; nothing: the run is over."""
    progress_first: float
    """Share of the run's budget that is done now ..."""
    progress_last: float
    """... and that will be done then."""


class Seat(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One member of an exchange."""

    address: Address
    site: str
    weight: float
    """Of its values in the mean; any positive unit."""


class LinkCodec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What values are encoded in from one seat of an exchange to another."""

    source: int
    target: int
    codec: str


class Dealt(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which shards of the data a worker draws from, where the coordinator deals them; see `learn.shards.Deal`."""

    number: int = 0
    """0: none are dealt."""
    since: int = 0
    cursor: dict[str, int] = {}


class SyncJoin(Message, kw_only=True, omit_defaults=True):
    """Take me in. Repeated until answered."""

    run: str
    """Fingerprint of what all must have in common."""
    life: int
    """A number that this process has drawn: a repetition is not a restart."""
    round: int
    """Rounds whose outcome I have; 0: I have my initial parameters."""
    num_credited: int
    """Steps that the run had credited then ..."""
    first: int
    """... and the step at which its next round began."""
    fingerprint: bytes
    """Of my agreed parameters."""
    site: str
    steps_per_second: float
    """Measured or declared; 0: unknown."""
    num_values: int
    """Length of the parameters."""
    num_shards: int = 0
    """Of the data that it reads; 0: it looks after its data itself."""
    order: int = 0
    """Of those data: workers that say the same share them."""


class SyncWelcome(Message, kw_only=True, omit_defaults=True):
    """You are a member. With a donor: its state first."""

    assignment: Assignment
    donor: Address | None
    dealt: Dealt = Dealt()


class SyncUnknown(Message, kw_only=True):
    """I do not know you (any more): join."""


class SyncArrive(Message, kw_only=True, omit_defaults=True):
    """I have done my steps of the round after `round` rounds."""

    round: int
    num_steps: int
    num_tokens: int
    loss: float
    steps_per_second: float
    drift: float = 0.0
    """Distance from the last mean of the parameters, over its norm; 0: unknown."""
    bytes_per_second: dict[PeerId, float] = msgspec.field(default_factory=dict[PeerId, float])
    """As measured towards those of the last round, where codecs are chosen by it."""
    deal: int = 0
    """Number of the deal of data that these steps were drawn under,"""
    cursor: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """and how far it was with all that it holds and has given up."""


class SyncForm(Message, kw_only=True, omit_defaults=True):
    """Average what is due among these seats, in this order."""

    exchange: int
    round: int
    due: tuple[str, ...]
    seats: tuple[Seat, ...]
    codecs: tuple[LinkCodec, ...] = ()
    """Of links whose codec the settings leave open."""


class SyncPart(Message, kw_only=True):
    """A part of the values on its way."""

    exchange: int
    index: int
    is_mean: bool
    """False: a sum on its way to the part's owner; True: its mean."""
    tensor: WireTensor


class SyncPartAsk(Message, kw_only=True):
    """These parts (index, is_mean) have not come; send again what you have sent of them."""

    exchange: int
    wanted: tuple[tuple[int, bool], ...]


class SyncReady(Message, kw_only=True):
    """I have every mean of this exchange. Repeated until answered."""

    exchange: int


class SyncStuck(Message, kw_only=True):
    """The way to a member of this exchange broke."""

    exchange: int
    member: Address


class SyncCommit(Message, kw_only=True, omit_defaults=True):
    """Every member has every mean: apply them."""

    exchange: int
    assignment: Assignment
    dealt: Dealt = Dealt()


class SyncAbort(Message, kw_only=True):
    """Nobody applies this exchange; arrive again."""

    exchange: int
    reason: str


class SyncLeave(Message, kw_only=True):
    """I am stopped, or the run is over for me: may I go, or is my state still needed? Repeated until answered."""


class SyncFarewell(Message, kw_only=True):
    """Go."""


class SyncStateAsk(Message, kw_only=True):
    """What is the state of the run?"""


class SyncStateHead(Message, kw_only=True):
    """It is this large, in parts of `SyncStatePart`."""

    snapshot: int
    """Number under which the donor keeps it."""
    round: int
    num_steps: int
    """Optimizer steps behind the moments."""
    num_credited: int
    first: int
    rule_steps: tuple[int, ...]
    """Of each fragment's outer rule."""
    shapes: dict[str, tuple[int, ...]]
    num_parts: int


class SyncStatePartAsk(Message, kw_only=True):
    """Send this part of a snapshot."""

    snapshot: int
    index: int


class SyncStatePart(Message, kw_only=True):
    """It: values of one tensor from `offset` on."""

    snapshot: int
    index: int
    name: str
    offset: int
    tensor: WireTensor
