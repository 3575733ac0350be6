"""What the lead of a run and its seats say to each other."""

import msgspec

from farflung.apps.runs.seats import Seat
from farflung.wire.message import Message
from farflung.world.address import PeerId

LEAD_ACTOR = "lead"
SEAT_ACTOR = "seat"


class AskSeat(Message, kw_only=True):
    """Somebody wants a part in the run; answered by `SeatGiven`, or `Refusal`."""

    version: str
    """Of the code."""
    seat: int | None = None
    """None: any that waits for a worker from elsewhere, or else a further one."""
    region: str | None = None
    """None: where workers lack most."""


class SeatGiven(Message, kw_only=True):
    """The part to take."""

    seat: Seat
    seats: tuple[Seat, ...]
    job: str
    """What kind of run it is."""
    run: str
    """Tables of the run file, as JSON."""
    materials: str
    """Fingerprint of the data and the model; whoever has others must not take part."""
    charter: bytes = b""
    """What this seat alone is told beyond the run file."""


class AskPeers(Message, kw_only=True):
    """Where are the others? Answered by `Peers`."""


class Peers(Message, kw_only=True):
    """Who sits where, as far as anybody does: index of the seat (as a text) to peer."""

    peers: dict[str, PeerId]
    ended: tuple[int, ...] = ()
    """Seats whose part is done; they may not be there any more."""


class SeatReport(Message, kw_only=True):
    """How a seat fares; counts are since its process began."""

    seat: int
    num_steps: int = 0
    num_tokens: int = 0
    loss: float | None = None
    """Mean of the training loss since the last report."""
    staleness: float | None = None
    values: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Whatever else tells how it fares, by name."""
    waiting_seconds: float = 0.0
    sent: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Bytes sent to each peer."""
    counters: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """What it has counted over all its lives, by name."""
    decisions: tuple[str, ...] = ()
    """What it has chosen by measurements since the last report, with reasons."""


class SeatEnded(Message, kw_only=True):
    """This seat's part is done. Told until `Noted`."""

    seat: int
    report: SeatReport


class Noted(Message, kw_only=True):
    """The lead has heard `SeatEnded`."""


class StopSeat(Message, kw_only=True):
    """Save what is to be saved, and leave."""

    reason: str
