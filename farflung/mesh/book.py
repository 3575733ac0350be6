"""The newest record of every node, as one holder has them: taken in when they are news, dropped when leases end."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from farflung.mesh.records import BadRecord, Record, read, verify
from farflung.wire.certificate import TicketRole
from farflung.wire.identity import Signed
from farflung.world.address import PeerId


@dataclass(frozen=True, slots=True)
class Held:
    """A record and until when it holds here."""

    record: Record
    signed: Signed
    expires_at: float
    """On the holder's monotonic clock."""


Granted = Callable[[PeerId], TicketRole | None]
"""What the certificate of a peer that was seen here permits; None for one that was not."""


def unknown(peer: PeerId) -> TicketRole | None:
    """For holders that see no certificates."""
    return None


class RecordBook:
    """At most one record per node, verified. A sequence once seen is never taken again, even after its lease."""

    def __init__(self, *, wall_offset_seconds: float, num_records_max: int, granted: Granted = unknown) -> None:
        """`wall_offset_seconds`: wall clock minus monotonic clock of this process."""
        self._granted = granted
        self._wall_offset_seconds = wall_offset_seconds
        self._num_records_max = num_records_max
        self._held: dict[PeerId, Held] = {}
        self._sequences: dict[PeerId, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        """All that is held, goodbyes included, in order of peer id."""
        return (self._held[peer] for peer in sorted(self._held))

    def get(self, peer: PeerId) -> Held | None:
        """What is held about `peer`, be it a goodbye."""
        return self._held.get(peer)

    def live(self) -> Mapping[PeerId, Record]:
        """Records of nodes that have not said goodbye, in order of peer id."""
        return {held.record.peer: held.record for held in self if not held.record.is_goodbye}

    def sequences(self) -> dict[PeerId, int]:
        """The sequence held of every node, in order of peer id."""
        return {held.record.peer: held.record.sequence for held in self}

    def offer(
        self, signed: Signed, now: float, *, subject: PeerId | None = None, seconds_left: float | None = None
    ) -> Held | None:
        """Take in a record if it is news: returns what is now held, or None if it is not newer than what was seen.

        `subject`: whom it must be about (None: anybody). `seconds_left`: what another holder says is left of the lease
        (None: it comes from its subject, now).

        Raises:
            BadRecord: forged, malformed, from another time, about somebody else, claiming a role that its subject's
                ticket does not grant, or one more than fits.
        """
        record = read(signed)
        if subject not in (None, record.peer):
            raise BadRecord(f"a record of {record.peer} was announced by {subject}")
        if record.sequence <= self._sequences.get(record.peer, -1):
            return None
        verify(signed, record, now + self._wall_offset_seconds)
        self._check_role(record)
        if record.peer not in self._held and len(self._held) >= self._num_records_max:
            raise BadRecord(f"there are already {self._num_records_max} records, which is the limit")
        lease = record.lease_seconds if seconds_left is None else min(record.lease_seconds, seconds_left)
        if lease <= 0:
            return None
        held = Held(record, signed, now + lease)
        self._held[record.peer] = held
        self._remember(record)
        return held

    def _check_role(self, record: Record) -> None:
        """A ticket says what its holder may be; the record must not say more."""
        granted = self._granted(record.peer)
        if granted is not None and not granted.may_grant(record.role):
            raise BadRecord(f"{record.peer} calls itself {record.role} with a {granted} ticket")
        if record.role is TicketRole.CLIENT and record.is_rendezvous:
            raise BadRecord(f"{record.peer} keeps a directory with a client ticket")

    def _remember(self, record: Record) -> None:
        self._sequences.pop(record.peer, None)
        self._sequences[record.peer] = record.sequence
        # Twice the limit, so that the sequences of the living are never what is forgotten: oldest news goes first.
        while len(self._sequences) > 2 * self._num_records_max:
            del self._sequences[next(iter(self._sequences))]

    def expire(self, now: float) -> list[Held]:
        """Drop and return what has ended by `now`, in order of peer id."""
        ended = [held for held in self if held.expires_at <= now]
        for held in ended:
            del self._held[held.record.peer]
        return ended

    def next_expiry(self) -> float | None:
        """When something ends next, on the monotonic clock."""
        return min((held.expires_at for held in self._held.values()), default=None)
