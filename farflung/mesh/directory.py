"""The rendezvous role: keeps the newest record of every node and tells subscribers; any one of them alive is enough.

    node --Announce--> rendezvous --Changes--> member of every node
                          |  ^
                  Compare |  | Fill        (between rendezvous nodes, so that they agree again after a partition)

It keeps nothing on disk: after a restart the nodes' renewals and the other rendezvous nodes fill it again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from farflung.mesh.book import Granted, Held, RecordBook, unknown
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
    Subscribe,
    Subscribed,
)
from farflung.mesh.records import BadRecord
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact
from farflung.world.effects import Effect, Introduce, Note, Send, WakeAt
from farflung.world.errors import PeerMisbehaved
from farflung.world.role import Role


@dataclass(slots=True)
class _Subscriber:
    stream: int
    num_sent: int
    num_sent_at_last_word: int
    """What it must have got by its next word; later parts may still be on their way."""
    heard_at: float


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
            case Subscribe():
                return self._subscribe(source, message, now)
            case Compare(sequences=sequences):
                return self._fill(source, sequences, now)
            case Fill(records=records):
                return self._filled(source, records, now)
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
        if not self._bucket(source.peer, now).take(now):
            reason = "announcements come faster than they are taken"
            return [Send(source, Refusal(reason=reason, retry_after_seconds=1.0))]
        try:
            # A copy sent by another would be genuine but says nothing about whether its subject still lives.
            held = self.book.offer(message.signed, now, subject=source.peer)
        except BadRecord as error:
            sentence = f"refused what {source.peer} announced: {error}"
            return [Note(sentence), Send(source, Refusal(reason=str(error)))]
        known = self.book.get(source.peer)
        effects = self._take(held, now)
        if known is not None:
            effects.append(Send(source, Announced(sequence=known.record.sequence)))
        return effects

    def _bucket(self, peer: PeerId, now: float) -> TokenBucket:
        if peer not in self._buckets:
            rate, burst = self._config.announces_per_second, self._config.announces_at_once
            self._buckets[peer] = TokenBucket(per_second=rate, burst=burst, now=now)
        return self._buckets[peer]

    def _take(self, held: Held | None, now: float) -> list[Effect]:
        """Pass news on with the next flush."""
        if held is None:
            return []
        is_first = not self._fresh
        self._fresh[held.record.peer] = None
        effects: list[Effect] = [WakeAt(now + self._config.flush_seconds)] if is_first else []
        if held.record.is_rendezvous and held.record.peer != self._peer:
            effects.append(Introduce(held.record.peer, held.record.contact))
        return effects

    # Subscribers

    def _subscribe(self, source: Address, message: Subscribe, now: float) -> list[Effect]:
        known = self._subscribers.get(source)
        if known is not None and message.stream == known.stream and message.number >= known.num_sent_at_last_word - 1:
            known.num_sent_at_last_word = known.num_sent
            known.heard_at = now
            return [Send(source, Subscribed(stream=known.stream))]
        if known is None and len(self._subscribers) >= self._config.num_subscribers_max:
            reason = f"there are already {self._config.num_subscribers_max} subscribers"
            return [Send(source, Refusal(reason=reason, retry_after_seconds=self._config.subscription_seconds))]
        self._num_streams += 1
        self._subscribers[source] = _Subscriber(self._num_streams, 0, 0, now)
        # An empty directory too is told: the part says that the stream has begun.
        parts = list(self._parts(self.book, now)) or [[]]
        effects = [self._part(source, part) for part in parts]
        self._subscribers[source].num_sent_at_last_word = len(parts)
        return effects

    def _part(self, subscriber: Address, records: list[Lease]) -> Effect:
        state = self._subscribers[subscriber]
        part = Changes(stream=state.stream, number=state.num_sent, records=records)
        state.num_sent += 1
        return Send(subscriber, part)

    def _parts(self, held: Iterable[Held], now: float) -> Iterable[list[Lease]]:
        part: list[Lease] = []
        num_bytes = 0
        for one in held:
            if part and num_bytes + len(one.signed.content) > self._config.part_bytes_max:
                yield part
                part, num_bytes = [], 0
            if one.expires_at <= now:
                continue
            part.append(Lease(one.signed, one.expires_at - now))
            num_bytes += len(one.signed.content)
        if part:
            yield part

    def _flush(self, now: float) -> list[Effect]:
        fresh = [held for peer in self._fresh if (held := self.book.get(peer)) is not None]
        self._fresh.clear()
        parts = list(self._parts(fresh, now))
        return [self._part(subscriber, part) for subscriber in self._subscribers for part in parts]

    def _forget_silent(self, now: float) -> None:
        for address, subscriber in list(self._subscribers.items()):
            if now - subscriber.heard_at > self._config.subscription_seconds:
                del self._subscribers[address]
        for peer in list(self._buckets):
            if self.book.get(peer) is None:
                del self._buckets[peer]

    # Other rendezvous nodes

    def _others(self) -> list[PeerId]:
        learned = [peer for peer, record in self.book.live().items() if record.is_rendezvous and peer != self._peer]
        return list(dict.fromkeys([*self._seeds, *learned]))

    def _compare(self, now: float) -> list[Effect]:
        self._compare_at = now + self._config.compare_seconds
        message = Compare(sequences=self.book.sequences())
        sends = [Send(Address(peer, RENDEZVOUS_ACTOR), message) for peer in self._others()]
        return [*sends, WakeAt(self._compare_at)]

    def _fill(self, source: Address, sequences: Mapping[PeerId, int], now: float) -> list[Effect]:
        lacking = [held for held in self.book if held.record.sequence > sequences.get(held.record.peer, -1)]
        return [Send(source, Fill(records=part)) for part in self._parts(lacking, now)]

    def _filled(self, source: Address, records: Sequence[Lease], now: float) -> list[Effect]:
        if source.peer not in self._others():
            raise PeerMisbehaved(source.peer, "it filled a directory without being a rendezvous node")
        effects: list[Effect] = []
        for lease in records:
            try:
                effects += self._take(self.book.offer(lease.signed, now, seconds_left=lease.seconds_left), now)
            except BadRecord as error:
                effects.append(Note(f"{source.peer} passed on a bad record: {error}"))
        return effects
