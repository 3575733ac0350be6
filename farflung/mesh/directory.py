"""The rendezvous role: keeps the newest record of every node and tells subscribers; any one of them alive is enough.

    node --Announce, Renew--> rendezvous --Changes--> members that follow this one
                                 |  ^
                         Compare |  | Fill     (between rendezvous nodes, so that they agree again after a partition)

Records are passed on at once, whole; renewals of leases a little later, many together, as links of their chains.

It keeps nothing on disk: after a restart the nodes' renewals and the other rendezvous nodes fill it again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from farflung.mesh.book import NOTHING, Granted, Held, RecordBook, unknown
from farflung.mesh.config import RendezvousConfig
from farflung.mesh.limits import TokenBucket
from farflung.mesh.messages import (
    RENDEZVOUS_ACTOR,
    Announce,
    Announced,
    Changes,
    Compare,
    Fill,
    Lease,
    Proof,
    Renew,
    Renewal,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from farflung.mesh.records import BadRecord
from farflung.mesh.renewals import KNOWN_BYTES, MARK_BYTES
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact
from farflung.world.effects import Effect, Introduce, Note, Send, WakeAt
from farflung.world.errors import PeerMisbehaved
from farflung.world.role import Role

RENEWAL_BYTES = 40
"""Of one renewal in a message, at most."""


@dataclass(slots=True)
class _Subscriber:
    stream: int
    num_sent: int
    num_sent_at_last_word: int
    """What it must have got by its next word; later parts may still be on their way."""
    heard_at: float


@dataclass(slots=True)
class _Part:
    """What goes out in one message."""

    records: list[Lease] = field(default_factory=list[Lease])
    renewals: list[Renewal] = field(default_factory=list[Renewal])
    num_bytes: int = 0


class Rendezvous(Role):
    """One rendezvous node. `peers` are the others it is told of at first; it learns of more from records."""

    def __init__(
        self,
        peer: PeerId,
        peers: Mapping[PeerId, Contact],
        *,
        wall_offset_seconds: float,
        config: RendezvousConfig | None = None,
        granted: Granted = unknown,
    ) -> None:
        """`wall_offset_seconds`: wall clock minus monotonic clock of this process. `granted`: what tickets permit."""
        self._peer = peer
        self._config = config or RendezvousConfig()
        self._seeds = {other: peers[other] for other in sorted(peers) if other != peer}
        self._wall_offset_seconds = wall_offset_seconds
        self.book = RecordBook(
            wall_offset_seconds=wall_offset_seconds, num_records_max=self._config.num_records_max, granted=granted
        )
        self._subscribers: dict[Address, _Subscriber] = {}
        self._buckets: dict[PeerId, TokenBucket] = {}
        self._fresh: dict[PeerId, None] = {}
        """Whose records are new since the last flush."""
        self._renewed: dict[PeerId, None] = {}
        self._renewals_at: float | None = None
        """When these are passed on."""
        self._compare_at = 0.0
        self._num_streams = 0

    def start(self, now: float) -> Sequence[Effect]:
        # Streams of a restarted node must not be taken for those of its life before.
        self._num_streams = int((now + self._wall_offset_seconds) * 1000)
        introductions = [Introduce(peer, contact) for peer, contact in self._seeds.items()]
        return [*introductions, *self._compare(now)]

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        match message:
            case Announce():
                return self._announced(source, message, now)
            case Renew(mark=mark, proof=proof):
                return self._renew(source, mark, proof, now)
            case Subscribe():
                return self._subscribe(source, message, now)
            case Unsubscribe():
                self._subscribers.pop(source, None)
                return ()
            case Compare(numbers=numbers):
                return self._fill(source, numbers, now)
            case Fill():
                return self._filled(source, message, now)
            case _:
                return ()

    def wake(self, now: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        self.book.expire(now)
        effects += self._flush(now)
        if now >= self._compare_at:
            self._forget_silent(now)
            effects += self._compare(now)
        return effects

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        for subscriber in [address for address in self._subscribers if address.peer == peer]:
            del self._subscribers[subscriber]
        return ()

    # Records of nodes

    def _announced(self, source: Address, message: Announce, now: float) -> list[Effect]:
        if (refusal := self._too_fast(source, now)) is not None:
            return [refusal]
        before = self.book.get(source.peer)
        try:
            # A copy sent by another would be genuine but says nothing about whether its subject still lives.
            held = self.book.offer(message.signed, now, proof=message.proof, subject=source.peer)
        except BadRecord as error:
            sentence = f"refused what {source.peer} announced: {error}"
            return [Note(sentence), Send(source, Refusal(reason=str(error)))]
        effects = self._take(before, held, now)
        known = self.book.get(source.peer)
        return effects if known is None else [*effects, self._answer(source, known)]

    def _renew(self, source: Address, mark: bytes, proof: Proof, now: float) -> list[Effect]:
        if (refusal := self._too_fast(source, now)) is not None:
            return [refusal]
        held = self.book.get(source.peer)
        if held is None or held.mark != mark:
            return [self._answer(source, held)]  # which shows it that its record is wanted
        try:
            is_news = self.book.renew(held, proof, now)
        except BadRecord as error:
            return [Note(f"refused a renewal of {source.peer}: {error}"), Send(source, Refusal(reason=str(error)))]
        effects = self._take(held, held, now) if is_news else []
        return [*effects, self._answer(source, held)]

    def _answer(self, source: Address, held: Held | None) -> Send:
        sequence, number = NOTHING if held is None else held.version
        return Send(source, Announced(sequence=sequence, number=number))

    def _too_fast(self, source: Address, now: float) -> Send | None:
        if self._bucket(source.peer, now).take(now):
            return None
        reason = "announcements come faster than they are taken"
        return Send(source, Refusal(reason=reason, retry_after_seconds=1.0))

    def _bucket(self, peer: PeerId, now: float) -> TokenBucket:
        if peer not in self._buckets:
            rate, burst = self._config.announces_per_second, self._config.announces_at_once
            self._buckets[peer] = TokenBucket(per_second=rate, burst=burst, now=now)
        return self._buckets[peer]

    def _take(self, before: Held | None, held: Held | None, now: float) -> list[Effect]:
        """Pass news on with the next flush; what is the same object as before was only renewed."""
        if held is None:
            return []
        if held is before:
            self._renewed[held.record.peer] = None
            if self._renewals_at is not None:
                return []
            self._renewals_at = now + self._config.renewals_flush_seconds
            return [WakeAt(self._renewals_at)]
        effects: list[Effect] = [] if self._fresh else [WakeAt(now + self._config.flush_seconds)]
        self._fresh[held.record.peer] = None
        if held.record.is_rendezvous and held.record.peer != self._peer:
            effects.append(Introduce(held.record.peer, held.record.contact))
        return effects

    # Subscribers

    def _subscribe(self, source: Address, message: Subscribe, now: float) -> list[Effect]:
        known = self._subscribers.get(source)
        if known is not None and message.stream == known.stream and message.number >= known.num_sent_at_last_word - 1:
            known.num_sent_at_last_word = known.num_sent
            known.heard_at = now
            return [Send(source, Subscribed(stream=known.stream, number=known.num_sent - 1))]
        if known is None and len(self._subscribers) >= self._config.num_subscribers_max:
            reason = f"there are already {self._config.num_subscribers_max} subscribers"
            return [Send(source, Refusal(reason=reason, retry_after_seconds=self._config.subscription_seconds))]
        self._num_streams += 1
        self._subscribers[source] = _Subscriber(self._num_streams, 0, 0, now)
        records, renewals = self._lacking(self._read_known(message.known))
        # An empty directory too is told: the part says that the stream has begun.
        parts = list(self._parts(records, renewals, now)) or [_Part()]
        effects = [self._part(source, part) for part in parts]
        self._subscribers[source].num_sent_at_last_word = len(parts)
        return effects

    def _read_known(self, known: bytes) -> dict[bytes, int]:
        """How often each record was renewed, by its mark."""
        num_bytes = min(len(known), self._config.num_records_max * KNOWN_BYTES)
        starts = range(0, num_bytes - KNOWN_BYTES + 1, KNOWN_BYTES)
        return {known[start : start + MARK_BYTES]: known[start + MARK_BYTES] for start in starts}

    def _part(self, subscriber: Address, part: "_Part") -> Effect:
        state = self._subscribers[subscriber]
        number, state.num_sent = state.num_sent, state.num_sent + 1
        message = Changes(stream=state.stream, number=number, records=part.records, renewals=part.renewals)
        return Send(subscriber, message)

    def _parts(self, records: Iterable[Held], renewals: Iterable[Held], now: float) -> Iterable["_Part"]:
        """Records first: a renewal is of something that is known."""
        part = _Part()
        for one in records:
            if one.expires_at <= now:
                continue
            num_bytes = len(one.signed.content)
            if part.num_bytes and part.num_bytes + num_bytes > self._config.part_bytes_max:
                yield part
                part = _Part()
            part.records.append(one.lease(now))
            part.num_bytes += num_bytes
        for one in renewals:
            if one.expires_at <= now:
                continue
            if part.num_bytes + RENEWAL_BYTES > self._config.part_bytes_max:
                yield part
                part = _Part()
            part.renewals.append(one.renewal(now))
            part.num_bytes += RENEWAL_BYTES
        if part.num_bytes:
            yield part

    def _flush(self, now: float) -> list[Effect]:
        records = self._held_of(self._fresh)
        renewed: list[Held] = []
        if self._renewals_at is not None and now >= self._renewals_at:
            renewed = [held for held in self._held_of(self._renewed) if held.record.peer not in self._fresh]
            self._renewed.clear()
            self._renewals_at = None
        self._fresh.clear()
        parts = list(self._parts(records, renewed, now))
        return [self._part(subscriber, part) for subscriber in self._subscribers for part in parts]

    def _held_of(self, peers: Iterable[PeerId]) -> list[Held]:
        return [held for peer in peers if (held := self.book.get(peer)) is not None]

    def _forget_silent(self, now: float) -> None:
        for address, subscriber in list(self._subscribers.items()):
            if now - subscriber.heard_at > self._config.subscription_seconds:
                del self._subscribers[address]
        for peer in list(self._buckets):
            if self.book.get(peer) is None:
                del self._buckets[peer]

    # Other rendezvous nodes

    def _others(self) -> list[PeerId]:
        return [peer for peer in dict.fromkeys([*self._seeds, *self.book.rendezvous()]) if peer != self._peer]

    def _compare(self, now: float) -> list[Effect]:
        self._compare_at = now + self._config.compare_seconds
        message = Compare(numbers=self.book.numbers())
        sends = [Send(Address(peer, RENDEZVOUS_ACTOR), message) for peer in self._others()]
        return [*sends, WakeAt(self._compare_at)]

    def _fill(self, source: Address, numbers: Mapping[bytes, int], now: float) -> list[Effect]:
        parts = self._parts(*self._lacking(numbers), now)
        return [Send(source, Fill(records=part.records, renewals=part.renewals)) for part in parts]

    def _lacking(self, numbers: Mapping[bytes, int]) -> tuple[list[Held], list[Held]]:
        """Records that one does not hold who has these, by their marks, and those that it holds renewed less often."""
        records = [held for held in self.book if held.mark not in numbers]
        renewed = [held for held in self.book if held.proof.number > numbers.get(held.mark, held.proof.number)]
        return records, renewed

    def _filled(self, source: Address, message: Fill, now: float) -> list[Effect]:
        if source.peer not in self._others():
            raise PeerMisbehaved(source.peer, "it filled a directory without being a rendezvous node")
        effects: list[Effect] = []
        for told in [*message.records, *message.renewals]:
            try:
                effects += self._take(*self.book.told(told, now), now)
            except BadRecord as error:
                effects.append(Note(f"{source.peer} passed on a bad record: {error}"))
        return effects
