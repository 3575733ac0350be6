"""The member role of every node: says who it is to all rendezvous nodes, and keeps a live view of everybody else.

Each rendezvous node is a source of its own, and their news are merged by sequence, so that any one alive is enough.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from farflung.mesh.book import Granted, Held, RecordBook, unknown
from farflung.mesh.config import MemberConfig, Profile
from farflung.mesh.messages import RENDEZVOUS_ACTOR, Announce, Announced, Changes, Subscribe, Subscribed
from farflung.mesh.records import BadRecord, Record, says_the_same
from farflung.mesh.source import Source
from farflung.wire.identity import Identity, Signed
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact
from farflung.world.effects import Effect, Introduce, Note, Send, WakeAt
from farflung.world.errors import PeerMisbehaved
from farflung.world.role import Role

Watcher = Callable[[PeerId, Record | None, Record | None], None]
"""Told (peer, record before, record now) when what a node says has changed; None: it was, or is, not there."""


class Member(Role):
    """This node's part in the directory. `rendezvous` are those its ticket names; it learns of more from records."""

    def __init__(
        self,
        identity: Identity,
        own: Profile,
        rendezvous: Mapping[PeerId, Contact],
        *,
        wall_offset_seconds: float,
        config: MemberConfig | None = None,
        granted: Granted = unknown,
    ) -> None:
        """`wall_offset_seconds`: wall clock minus monotonic clock of this process. `granted`: what tickets permit."""
        self._identity = identity
        self._own = own
        self._seeds = {peer: rendezvous[peer] for peer in sorted(rendezvous)}
        if own.is_rendezvous:
            self._seeds[identity.peer] = own.contact
        self._wall_offset_seconds = wall_offset_seconds
        self._config = config or MemberConfig()
        self._topics: dict[str, bytes] = {}
        self._sequence = 0
        self._signed: Signed | None = None
        self._has_left = False
        self._renew_at = 0.0
        self._publish_at: float | None = None
        self._announced_at = 0.0
        self._book = RecordBook(
            wall_offset_seconds=wall_offset_seconds, num_records_max=self._config.num_records_max, granted=granted
        )
        self._view: dict[PeerId, Record] = {}
        self._sources: dict[PeerId, Source] = {}
        self._watchers: list[Watcher] = []
        self.refusals: dict[PeerId, str] = {}
        """Why rendezvous nodes do not take our record, by peer; for the user."""

    # What local code asks

    @property
    def peer(self) -> PeerId:
        """This node."""
        return self._identity.peer

    @property
    def view(self) -> Mapping[PeerId, Record]:
        """Newest record of every live node, this one included; changes in place."""
        return MappingProxyType(self._view)

    def topic(self, name: str) -> dict[PeerId, bytes]:
        """What live nodes publish under a topic, in order of peer id."""
        return {peer: self._view[peer].topics[name] for peer in sorted(self._view) if name in self._view[peer].topics}

    @property
    def joined(self) -> list[PeerId]:
        """Rendezvous nodes that hold a record of this node, in order of their ids."""
        return [peer for peer in sorted(self._sources) if self._sources[peer].acknowledged >= 0]

    @property
    def is_heard(self) -> bool:
        """Whether a rendezvous node holds all that this node says now."""
        newest = max((source.acknowledged for source in self._sources.values()), default=-1)
        return self._publish_at is None and newest >= self._sequence

    def clocks_ahead_seconds(self) -> dict[PeerId, float]:
        """How far the wall clocks of other nodes are ahead of this one's, off by as long as their records travelled.

        What is left of a lease counts on clocks that need not agree, from when its record was made.
        """
        ahead: dict[PeerId, float] = {}
        for held in self._book:
            record, own_end = held.record, held.expires_at + self._wall_offset_seconds
            if record.peer in self._view and record.peer != self.peer:
                ahead[record.peer] = record.issued_at + record.lease_seconds - own_end
        return ahead

    def watch(self, watcher: Watcher) -> None:
        """Be told of every change of the view (renewals of a lease are none), in order."""
        self._watchers.append(watcher)

    def publish(self, topic: str, content: bytes | None, now: float) -> Sequence[Effect]:
        """Say something under a topic from now on (None: no longer); perform the effects with this role's host.

        Raises:
            BadRecord: with it the record is over a limit.
        """
        topics = {name: text for name, text in {**self._topics, topic: content}.items() if text is not None}
        self._record(topics, now).sign(self._identity)
        if topics == self._topics:
            return ()
        self._topics = topics
        if self._signed is None or self._has_left:
            return ()
        if self._publish_at is None:
            self._publish_at = max(now, self._announced_at + self._config.publish_seconds_min)
        return self._work(now)

    def leave(self, now: float) -> Sequence[Effect]:
        """Say goodbye: others forget this node at once."""
        self._has_left = True
        self._topics = {}
        return self._announce(now)

    # Events

    def start(self, now: float) -> Sequence[Effect]:
        for peer in self._seeds:
            self._sources[peer] = Source(now, self._config.retry_seconds)
        others = [Introduce(peer, contact) for peer, contact in self._seeds.items() if peer != self.peer]
        return [*others, *self._renew(now)]

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        match message:
            case Announced(sequence=sequence):
                return self._acknowledged(self._source(source), source.peer, sequence, now)
            case Subscribed(stream=stream):
                known = self._source(source)
                known.is_following = known.stream == stream
                return ()
            case Changes():
                return self._changes(self._source(source), source, message, now)
            case Refusal(reason=reason):
                self.refusals[source.peer] = reason
                return [Note(f"{source.peer} refused: {reason}")]
            case _:
                return ()

    def _source(self, source: Address) -> Source:
        if source.peer not in self._sources or source.actor != RENDEZVOUS_ACTOR:
            raise PeerMisbehaved(source.peer, "it speaks as a rendezvous node and is none that is known here")
        return self._sources[source.peer]

    def wake(self, now: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        for held in self._book.expire(now):
            effects += self._show(held.record.peer, None)
        return [*effects, *self._work(now)]

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        source = self._sources.get(peer)
        if source is None or self._has_left:
            return ()
        source.lost(now)
        return [WakeAt(source.retry_at)]

    # Speaking

    def _record(self, topics: Mapping[str, bytes], now: float) -> Record:
        return Record(
            peer=self.peer,
            sequence=self._sequence,
            issued_at=now + self._wall_offset_seconds,
            lease_seconds=self._config.lease_seconds,
            role=self._own.role,
            contact=self._own.contact,
            site=self._own.site,
            is_rendezvous=self._own.is_rendezvous,
            is_goodbye=self._has_left,
            topics=dict(topics),
        )

    def _work(self, now: float) -> list[Effect]:
        """Whatever is due: renew, publish, or ask again where no answer came."""
        if self._has_left:
            return []
        if now >= self._renew_at:
            return self._renew(now)
        if self._publish_at is not None and now >= self._publish_at:
            return self._announce(now)
        effects: list[Effect] = []
        for peer, source in self._sources.items():
            if now >= source.retry_at and source.owes_answer(self._sequence):
                effects += self._speak(peer, source, now)
        return [*effects, self._wake(now)]

    def _renew(self, now: float) -> list[Effect]:
        self._renew_at = now + self._config.renew_seconds
        for source in self._sources.values():
            source.is_following = False
        return self._announce(now)

    def _announce(self, now: float) -> list[Effect]:
        """A new record, to every rendezvous node."""
        self._sequence = max(self._sequence + 1, int((now + self._wall_offset_seconds) * 1000))
        self._signed = self._record(self._topics, now).sign(self._identity)
        self._publish_at = None
        self._announced_at = now
        effects = self._take(self._book.offer(self._signed, now))
        for peer, source in list(self._sources.items()):
            source.retry_seconds = self._config.retry_seconds
            effects += self._speak(peer, source, now)
        return effects if self._has_left else [*effects, self._wake(now)]

    def _speak(self, peer: PeerId, source: Source, now: float) -> list[Effect]:
        assert self._signed is not None
        source.spoken(now, self._config.renew_seconds)
        address = Address(peer, RENDEZVOUS_ACTOR)
        effects: list[Effect] = [Send(address, Announce(signed=self._signed))]
        if not source.is_following and not self._has_left:
            effects.append(Send(address, Subscribe(stream=source.stream, number=source.number)))
        return effects

    def _wake(self, now: float) -> WakeAt:
        times = [self._renew_at, self._publish_at, self._book.next_expiry()]
        times += [source.retry_at for source in self._sources.values() if source.owes_answer(self._sequence)]
        return WakeAt(max(now, min(time for time in times if time is not None)))

    def _acknowledged(self, source: Source, peer: PeerId, sequence: int, now: float) -> list[Effect]:
        source.acknowledged = sequence
        self.refusals.pop(peer, None)
        if sequence <= self._sequence:
            return []
        # A life before this one counted further, because its wall clock was ahead: go on from there.
        self._sequence = sequence
        return self._announce(now)

    # Listening

    def _changes(self, source: Source, address: Address, message: Changes, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for lease in message.records:
            try:
                effects += self._take(self._book.offer(lease.signed, now, seconds_left=lease.seconds_left))
            except BadRecord as error:
                effects.append(Note(f"{address.peer} passed on a bad record: {error}"))
        if not source.follow(message.stream, message.number):
            effects.append(Send(address, Subscribe(stream=0, number=-1)))
        return [*effects, self._wake(now)]

    def _take(self, held: Held | None) -> list[Effect]:
        if held is None:
            return []
        return self._show(held.record.peer, None if held.record.is_goodbye else held.record)

    def _show(self, peer: PeerId, after: Record | None) -> list[Effect]:
        """Bring the view up to date; the effects are those of getting to know a peer."""
        before = self._view.get(peer)
        if after is None:
            self._view.pop(peer, None)
        else:
            self._view[peer] = after
        self._follow(peer, after)
        effects: list[Effect] = []
        if after is not None and peer != self.peer and (before is None or before.contact != after.contact):
            effects.append(Introduce(peer, after.contact))
        if not says_the_same(before, after):
            for watcher in self._watchers:
                watcher(peer, before, after)
        return effects

    def _follow(self, peer: PeerId, record: Record | None) -> None:
        """Rendezvous nodes come and go; those of the ticket are never given up."""
        is_rendezvous = peer in self._seeds or (record is not None and record.is_rendezvous)
        if not is_rendezvous:
            self._sources.pop(peer, None)
        elif peer not in self._sources:
            self._sources[peer] = Source(0.0, self._config.retry_seconds)
