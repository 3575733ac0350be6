"""The member role of every node: says who it is to all rendezvous nodes, and keeps a live view of everybody else.

It follows the news of one rendezvous node at a time (`sources`). Whatever any of them tells is merged by version, so
that any one alive is enough.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from farflung.mesh.book import Granted, Held, RecordBook, unknown
from farflung.mesh.config import MemberConfig, Profile
from farflung.mesh.messages import Announced, Changes, Renewal, Subscribed
from farflung.mesh.own_record import OwnRecord
from farflung.mesh.records import BadRecord, Record, says_the_same
from farflung.mesh.sources import Sources
from farflung.wire.identity import Identity
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact
from farflung.world.effects import Effect, Introduce, Note, WakeAt
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
        self._seeds = {peer: rendezvous[peer] for peer in sorted(rendezvous)}
        if own.is_rendezvous:
            self._seeds[identity.peer] = own.contact
        self._config = config or MemberConfig()
        self._said = OwnRecord(identity, own, wall_offset_seconds, self._config)
        self._topics: dict[str, bytes] = {}
        self._renew_at = 0.0
        self._publish_at: float | None = None
        self._announced_at = 0.0
        self._book = RecordBook(
            wall_offset_seconds=wall_offset_seconds, num_records_max=self._config.num_records_max, granted=granted
        )
        self._view: dict[PeerId, Record] = {}
        self._sources = Sources(identity.peer, self._said, self._book.known, self._config)
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
        return self._sources.joined

    @property
    def is_heard(self) -> bool:
        """Whether a rendezvous node holds all that this node says now."""
        return self._publish_at is None and self._sources.newest_sequence >= self._said.sequence

    def clocks_ahead_seconds(self) -> dict[PeerId, float]:
        """How far the wall clocks of other nodes are ahead of this one's, off by as long as their records travelled.

        What was left of a lease counts on clocks that need not agree, from when its record was made.
        """
        return {
            held.record.peer: held.clock_ahead_seconds
            for held in self._book
            if held.record.peer in self._view and held.record.peer != self.peer
        }

    def watch(self, watcher: Watcher) -> None:
        """Be told of every change of the view (renewals of a lease are none), in order."""
        self._watchers.append(watcher)

    def publish(self, topic: str, content: bytes | None, now: float) -> Sequence[Effect]:
        """Say something under a topic from now on (None: no longer); perform the effects with this role's host.

        Raises:
            BadRecord: with it the record is over a limit.
        """
        topics = {name: text for name, text in {**self._topics, topic: content}.items() if text is not None}
        self._said.check(topics, now)
        if topics == self._topics:
            return ()
        self._topics = topics
        if self._said.signed is None or self._said.is_goodbye:
            return ()
        if self._publish_at is None:
            self._publish_at = max(now, self._announced_at + self._config.publish_seconds_min)
        return self._work(now)

    def leave(self, now: float) -> Sequence[Effect]:
        """Say goodbye: others forget this node at once."""
        self._said.is_goodbye = True
        self._topics = {}
        return self._announce(now)

    # Events

    def start(self, now: float) -> Sequence[Effect]:
        for peer in self._seeds:
            self._sources.add(peer, now)
        self._sources.begin(now)
        others = [Introduce(peer, contact) for peer, contact in self._seeds.items() if peer != self.peer]
        return [*others, *self._announce(now), *self._sources.work(now), self._wake(now)]

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        match message:
            case Announced(sequence=sequence, number=number):
                self._sources.check(source)
                return self._acknowledged(source.peer, (sequence, number), now)
            case Subscribed():
                self._sources.check(source)
                asked = self._sources.goes_on(source.peer, message, now)
                return [*asked, self._wake(now)] if asked else ()
            case Changes():
                self._sources.check(source)
                return self._changes(source, message, now)
            case Refusal(reason=reason):
                self.refusals[source.peer] = reason
                return [Note(f"{source.peer} refused: {reason}")]
            case _:
                return ()

    def wake(self, now: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        for held in self._book.expire(now):
            effects += self._show(held.record.peer, None)
        return [*effects, *self._work(now)]

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        if self._said.is_goodbye or self._said.signed is None:
            return ()
        return [*self._sources.lost(peer, now), self._wake(now)]

    # Speaking

    def _work(self, now: float) -> list[Effect]:
        """Whatever is due: renew, publish, go on listening, or ask again where no answer came."""
        if self._said.is_goodbye:
            return []
        if self._publish_at is not None and now >= self._publish_at:
            return self._announce(now)
        renewed = self._renew(now) if now >= self._renew_at else []
        return [*renewed, *self._sources.work(now), self._wake(now)]

    def _renew(self, now: float) -> list[Effect]:
        """Prolong our lease at every rendezvous node."""
        held = self._book.get(self.peer)
        if held is None or not self._said.renew(now, len(self._view)):
            return self._announce(now)
        self._book.renew(held, self._said.proof, now)
        self._renew_at = now + self._said.renew_seconds
        return self._sources.tell_all(now)

    def _announce(self, now: float) -> list[Effect]:
        """A new record, to every rendezvous node."""
        self._said.sign(self._topics, now, len(self._view))
        assert self._said.signed is not None
        self._publish_at = None
        self._announced_at = now
        self._renew_at = now + self._said.renew_seconds
        effects = [*self._take(self._book.offer(self._said.signed, now)), *self._sources.tell_all(now)]
        return effects if self._said.is_goodbye else [*effects, self._wake(now)]

    def _wake(self, now: float) -> WakeAt:
        times = [self._renew_at, self._sources.wake_at(), self._publish_at, self._book.next_expiry()]
        return WakeAt(max(now, min(time for time in times if time is not None)))

    def _acknowledged(self, peer: PeerId, version: tuple[int, int], now: float) -> list[Effect]:
        self.refusals.pop(peer, None)
        effects = self._sources.acknowledged(peer, version, now)
        if version[0] > self._said.sequence:
            # A life before this one counted further, because its wall clock was ahead: go on from there.
            self._said.sequence = version[0]
            return [*effects, *self._announce(now)]
        return [*effects, self._wake(now)] if effects else []

    # Listening

    def _changes(self, address: Address, message: Changes, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for told in [*message.records, *message.renewals]:
            try:
                before, held = self._book.told(told, now)
            except BadRecord as error:
                effects.append(Note(f"{address.peer} passed on a bad record: {error}"))
                continue
            if held is not None and held is not before:
                effects += self._take(held)
            self._sources.is_behind |= before is None and isinstance(told, Renewal)
        return [*effects, *self._sources.heard(address, message, now), self._wake(now)]

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
        self._count_source(peer, after)
        effects: list[Effect] = []
        if after is not None and peer != self.peer and (before is None or before.contact != after.contact):
            effects.append(Introduce(peer, after.contact))
        if not says_the_same(before, after):
            for watcher in self._watchers:
                watcher(peer, before, after)
        return effects

    def _count_source(self, peer: PeerId, record: Record | None) -> None:
        """Rendezvous nodes come and go; those of the ticket are never given up."""
        if peer in self._seeds:
            return
        if record is not None and record.is_rendezvous:
            self._sources.add(peer, 0.0)
        else:
            self._sources.drop(peer)
