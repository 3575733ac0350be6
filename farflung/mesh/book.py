"""The newest record of every node, as one holder has them: taken in and renewed when told, dropped when leases end."""

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from farflung.mesh.messages import UNRENEWED, Lease, Proof, Renewal
from farflung.mesh.records import BadRecord, Record, read, verify, verify_time
from farflung.mesh.renewals import ANCHOR_NUMBER, LINK_BYTES, NUM_RENEWALS_MAX, mark_of, toward_anchor
from farflung.wire.certificate import TicketRole
from farflung.wire.identity import Signed
from farflung.world.address import PeerId

NOTHING = (-1, 0)
"""The version before any: versions are (sequence of a record, number of its renewal)."""


@dataclass(slots=True)
class Held:
    """A record, how it was last renewed, and until when it holds here. Changes in place when it is renewed."""

    record: Record
    signed: Signed
    mark: bytes
    proof: Proof
    expires_at: float
    """On the holder's monotonic clock."""
    clock_ahead_seconds: float
    """The subject's wall clock before the holder's, off by as long as the record travelled."""
    queued_at: float
    """The moment at which the book looks at it next; not after its lease ends."""

    @property
    def version(self) -> tuple[int, int]:
        """Higher is newer."""
        return self.record.sequence, self.proof.number

    def lease(self, now: float) -> Lease:
        """As it is passed on to one who does not hold it."""
        return Lease(self.signed, self.expires_at - now, self.proof)

    def renewal(self, now: float) -> Renewal:
        """As it is passed on to one who does."""
        return Renewal(self.mark, int((self.expires_at - now) * 1000), self.proof.number, self.proof.link)


Granted = Callable[[PeerId], TicketRole | None]
"""What the certificate of a peer that was seen here permits; None for one that was not."""


def unknown(peer: PeerId) -> TicketRole | None:
    """For holders that see no certificates."""
    return None


class RecordBook:
    """At most one record per node, verified. A version once seen is never taken again, even after its lease."""

    def __init__(self, *, wall_offset_seconds: float, num_records_max: int, granted: Granted = unknown) -> None:
        """`wall_offset_seconds`: wall clock minus monotonic clock of this process."""
        self._granted = granted
        self._wall_offset_seconds = wall_offset_seconds
        self._num_records_max = num_records_max
        self._held: dict[PeerId, Held] = {}
        self._by_mark: dict[bytes, Held] = {}
        self._rendezvous: dict[PeerId, None] = {}
        self._ends: list[tuple[float, PeerId]] = []
        """A heap; the entry of a record is that of its `queued_at`, others of the same node are void."""
        self._seen: dict[PeerId, tuple[int, int]] = {}
        """Versions of what is no longer held, oldest first."""

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        """All that is held, goodbyes included, in order of peer id."""
        return (self._held[peer] for peer in sorted(self._held))

    def get(self, peer: PeerId) -> Held | None:
        """What is held about `peer`, be it a goodbye."""
        return self._held.get(peer)

    def marked(self, mark: bytes) -> Held | None:
        """What is held under a mark."""
        return self._by_mark.get(mark)

    def live(self) -> Mapping[PeerId, Record]:
        """Records of nodes that have not said goodbye, in order of peer id."""
        return {held.record.peer: held.record for held in self if not held.record.is_goodbye}

    def rendezvous(self) -> list[PeerId]:
        """Live nodes that keep the directory, in order of their ids."""
        return sorted(self._rendezvous)

    def known(self) -> bytes:
        """What is held, in `KNOWN_BYTES` each."""
        return b"".join(mark + bytes([held.proof.number]) for mark, held in self._by_mark.items())

    def numbers(self) -> dict[bytes, int]:
        """How often each record was renewed, by its mark."""
        return {mark: held.proof.number for mark, held in self._by_mark.items()}

    # Taking in

    def offer(
        self,
        signed: Signed,
        now: float,
        *,
        proof: Proof = UNRENEWED,
        subject: PeerId | None = None,
        seconds_left: float | None = None,
    ) -> Held | None:
        """Take in a record if it is news: returns what is now held, or None if it is not newer than what was seen.

        `proof`: its newest renewal. `subject`: whom it must be about (None: anybody). `seconds_left`: what another
        holder says is left of the lease (None: it comes from its subject, now). A record that is held already is
        renewed in place: what is returned is the same object as before.

        Raises:
            BadRecord: forged, malformed, from another time, about somebody else, claiming a role that its subject's
                ticket does not grant, or one more than fits.
        """
        mark = mark_of(signed)
        if (held := self._by_mark.get(mark)) is not None:
            _check_subject(held.record, subject)
            return held if self.renew(held, proof, now, seconds_left=seconds_left) else None
        record = read(signed)
        _check_subject(record, subject)
        if (record.sequence, proof.number) <= self._version(record.peer):
            return None
        verify(signed, record)
        verify_time(record, proof.number, now + self._wall_offset_seconds)
        self._check_role(record)
        _check_link(record, proof, Proof(ANCHOR_NUMBER, record.anchor))
        if record.peer not in self._held and len(self._held) >= self._num_records_max:
            raise BadRecord(f"there are already {self._num_records_max} records, which is the limit")
        lease = _lease_seconds(record, seconds_left)
        return self._keep(record, signed, mark, proof, now + lease) if lease > 0 else None

    def renew(self, held: Held, proof: Proof, now: float, *, seconds_left: float | None = None) -> bool:
        """Prolong the lease of what is held; False if the proof is no newer than the one before.

        Raises:
            BadRecord: a link that is none, or from another time.
        """
        if proof.number <= held.proof.number:
            return False
        record = held.record
        _check_link(record, proof, held.proof if held.proof.link else Proof(ANCHOR_NUMBER, record.anchor))
        verify_time(record, proof.number, now + self._wall_offset_seconds)
        held.proof = proof
        # One who tells it late must not shorten what another has told.
        held.expires_at = max(held.expires_at, now + _lease_seconds(record, seconds_left))
        return True

    def told(self, told: Lease | Renewal, now: float) -> tuple[Held | None, Held | None]:
        """What another holder passes on: what was held before, and what is now if it is news (see `offer`).

        Raises:
            BadRecord: as `offer` and `renew`.
        """
        if isinstance(told, Lease):
            before = self._by_mark.get(mark_of(told.signed))
            return before, self.offer(told.signed, now, proof=told.proof, seconds_left=told.seconds_left)
        held = self._by_mark.get(told.mark)
        if held is None:
            return None, None
        proof = Proof(told.number, told.link)
        return held, held if self.renew(held, proof, now, seconds_left=told.milliseconds_left / 1000) else None

    def _version(self, peer: PeerId) -> tuple[int, int]:
        held = self._held.get(peer)
        return self._seen.get(peer, NOTHING) if held is None else held.version

    def _keep(self, record: Record, signed: Signed, mark: bytes, proof: Proof, expires_at: float) -> Held:
        before = self._held.get(record.peer)
        said_at = record.issued_at + proof.number * record.renew_seconds
        ahead = said_at + record.lease_seconds - (expires_at + self._wall_offset_seconds)
        queued_at = expires_at if before is None else min(before.queued_at, expires_at)
        held = Held(record, signed, mark, proof, expires_at, ahead, queued_at)
        self._held[record.peer] = self._by_mark[mark] = held
        self._seen.pop(record.peer, None)
        self._rendezvous.pop(record.peer, None)
        if record.is_rendezvous and not record.is_goodbye:
            self._rendezvous[record.peer] = None
        if before is not None:
            del self._by_mark[before.mark]
        if before is None or queued_at < before.queued_at:
            heapq.heappush(self._ends, (queued_at, record.peer))
        return held

    def _check_role(self, record: Record) -> None:
        """A ticket says what its holder may be; the record must not say more."""
        granted = self._granted(record.peer)
        if granted is not None and not granted.may_grant(record.role):
            raise BadRecord(f"{record.peer} calls itself {record.role} with a {granted} ticket")
        if record.role is TicketRole.CLIENT and record.is_rendezvous:
            raise BadRecord(f"{record.peer} keeps a directory with a client ticket")

    # Ends

    def expire(self, now: float) -> list[Held]:
        """Drop and return what has ended by `now`, in order of peer id."""
        ended: dict[PeerId, Held] = {}
        while (first := self.next_expiry()) is not None and first <= now:
            _, peer = heapq.heappop(self._ends)
            ended[peer] = held = self._held.pop(peer)
            del self._by_mark[held.mark]
            self._rendezvous.pop(peer, None)
            self._remember(held)
        return [ended[peer] for peer in sorted(ended)]

    def next_expiry(self) -> float | None:
        """When something ends next, on the monotonic clock."""
        while self._ends:
            end, peer = self._ends[0]
            held = self._held.get(peer)
            if held is None or held.queued_at != end:
                heapq.heappop(self._ends)
            elif held.expires_at > end:
                held.queued_at = held.expires_at
                heapq.heapreplace(self._ends, (held.queued_at, peer))
            else:
                return end
        return None

    def _remember(self, held: Held) -> None:
        self._seen[held.record.peer] = held.version
        while len(self._seen) > self._num_records_max:
            del self._seen[next(iter(self._seen))]


def _check_subject(record: Record, subject: PeerId | None) -> None:
    if subject not in (None, record.peer):
        raise BadRecord(f"a record of {record.peer} was announced by {subject}")


def _check_link(record: Record, proof: Proof, before: Proof) -> None:
    """That `proof` leads to `before`, which is believed."""
    num_steps = proof.number - before.number
    if not num_steps and not proof.link:
        return
    is_possible = num_steps > 0 and proof.number <= NUM_RENEWALS_MAX and len(proof.link) == LINK_BYTES and record.anchor
    if not is_possible or toward_anchor(record.peer, proof.link, num_steps) != before.link:
        raise BadRecord(f"a renewal of {record.peer} is not its subject's")


def _lease_seconds(record: Record, seconds_left: float | None) -> float:
    return record.lease_seconds if seconds_left is None else min(record.lease_seconds, seconds_left)
