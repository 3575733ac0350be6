"""The rendezvous nodes as a member deals with them: all hear its record, and the news of one are followed.

Another one is followed at once when that one is lost or does not answer, and the next after a minute in any case, so
that what one keeps back, or could not hear, is told by the others.
"""

import zlib
from collections.abc import Callable

from farflung.mesh.book import NOTHING
from farflung.mesh.config import MemberConfig
from farflung.mesh.messages import RENDEZVOUS_ACTOR, Changes, Subscribe, Subscribed, Unsubscribe
from farflung.mesh.own_record import OwnRecord
from farflung.mesh.source import Source
from farflung.world.address import Address, PeerId
from farflung.world.effects import Effect, Send
from farflung.world.errors import PeerMisbehaved


class Sources:
    """Those that are known, in no order; every method that speaks returns the effects."""

    def __init__(self, own: PeerId, said: OwnRecord, known: Callable[[], bytes], config: MemberConfig) -> None:
        """`own`: this node, which follows itself if it is a rendezvous node. `known`: what it holds."""
        self._own = own
        self._said = said
        self._known = known
        self._config = config
        self._sources: dict[PeerId, Source] = {}
        self._followed: PeerId | None = None
        """None: whoever answers next."""
        self._word_at = 0.0
        """When the one that is followed hears of us again."""
        self._next_at = 0.0
        """When the next one is followed."""
        self.is_behind = False
        """There was a renewal of a record that is not held: ask anew with the next word."""

    def add(self, peer: PeerId, now: float) -> None:
        """One more, to be told of us from `now` on."""
        if peer not in self._sources:
            self._sources[peer] = Source(now, self._config.retry_seconds)

    def drop(self, peer: PeerId) -> None:
        """It is a rendezvous node no longer."""
        self._sources.pop(peer, None)
        if peer == self._followed:
            self._followed = None

    def begin(self, now: float) -> None:
        """Choose whom to follow first: different members begin with different ones."""
        peers = sorted(self._sources)
        if self._own in self._sources:
            self._followed = self._own
        elif peers:
            self._followed = peers[zlib.crc32(self._own.encode()) % len(peers)]
        self._word_at = now
        self._next_at = now + self._config.follow_seconds

    def check(self, address: Address) -> None:
        """Raises PeerMisbehaved: nobody there is a rendezvous node."""
        if address.peer not in self._sources or address.actor != RENDEZVOUS_ACTOR:
            raise PeerMisbehaved(address.peer, "it speaks as a rendezvous node and is none that is known here")

    @property
    def joined(self) -> list[PeerId]:
        """Those that hold a record of this node, in order of their ids."""
        return [peer for peer in sorted(self._sources) if self._sources[peer].acknowledged > NOTHING]

    @property
    def newest_sequence(self) -> int:
        """Of the records of this node that they hold; -1: none."""
        return max((source.acknowledged for source in self._sources.values()), default=NOTHING)[0]

    # When something happens

    def tell_all(self, now: float) -> list[Effect]:
        """There is a new version of what we say."""
        effects: list[Effect] = []
        for peer, source in self._sources.items():
            source.retry_seconds = self._config.retry_seconds
            effects += self._tell(peer, now)
        return effects

    def acknowledged(self, peer: PeerId, version: tuple[int, int], now: float) -> list[Effect]:
        """It says what it holds of us."""
        source = self._sources[peer]
        before, source.acknowledged = source.acknowledged, version
        # It has held our record and does so no longer: it was renewed there in vain.
        is_forgotten = version[0] < self._said.sequence == before[0]
        effects = self._tell(peer, now) if is_forgotten else []
        return [*effects, *self._follow(peer, now)] if self._followed is None else effects

    def goes_on(self, peer: PeerId, answer: Subscribed, now: float) -> list[Effect]:
        """It answers a word about its stream."""
        return [] if self._sources[peer].goes_on(answer.stream, answer.number) else self._ask(peer, now)

    def heard(self, address: Address, part: Changes, now: float) -> list[Effect]:
        """A part of its stream came."""
        if address.peer != self._followed:
            return [Send(address, Unsubscribe())]
        return [] if self._sources[address.peer].follow(part.stream, part.number) else self._ask(address.peer, now)

    def lost(self, peer: PeerId, now: float) -> list[Effect]:
        """The way to a peer broke."""
        source = self._sources.get(peer)
        if source is None:
            return []
        source.lost(now)
        return self._follow_another(now) if peer == self._followed else []

    def work(self, now: float) -> list[Effect]:
        """Whatever is due: go to the next, let the one that is followed hear of us, ask again who has not answered."""
        effects: list[Effect] = []
        if now >= self._next_at:
            effects += self._follow_another(now)
        if now >= self._word_at:
            effects += self._word(now)
        for peer, source in self._sources.items():
            if now >= source.retry_at and self._owes_answer(peer):
                if peer == self._followed and not source.is_following:
                    effects += self._follow_another(now)
                effects += [*self._tell(peer, now), *self._ask(peer, now)]
        return effects

    def wake_at(self) -> float:
        """When `work` is due next."""
        retries = [source.retry_at for peer, source in self._sources.items() if self._owes_answer(peer)]
        return min(self._word_at, self._next_at, *retries)

    # Speaking

    def _owes_answer(self, peer: PeerId) -> bool:
        return self._sources[peer].owes_answer(self._said.version, is_followed=peer == self._followed)

    def _tell(self, peer: PeerId, now: float) -> list[Effect]:
        """Say to it what we say now, unless it has acknowledged that."""
        source = self._sources[peer]
        if source.acknowledged >= self._said.version:
            return []
        source.spoken(now, self._config.renew_seconds)
        holds_it = source.acknowledged[0] == self._said.sequence
        said = self._said.renewal() if holds_it else self._said.announcement()
        return [Send(Address(peer, RENDEZVOUS_ACTOR), said)]

    def _ask(self, peer: PeerId, now: float) -> list[Effect]:
        """Ask it for its stream, if it is the one that is followed and does not say that the stream goes on."""
        source = self._sources[peer]
        if peer != self._followed or source.is_following:
            return []
        source.spoken(now, self._config.renew_seconds)
        known = b"" if source.stream else self._known()
        ask = Subscribe(stream=source.stream, number=source.number, known=known)
        return [Send(Address(peer, RENDEZVOUS_ACTOR), ask)]

    def _word(self, now: float) -> list[Effect]:
        """Tell the one that is followed how far we have come, or that we begin."""
        self._word_at = now + self._config.renew_seconds
        if self._followed is None:
            return []
        source = self._sources[self._followed]
        source.is_following = False
        if self.is_behind:
            self.is_behind = False
            source.forget_stream()
        source.retry_seconds = self._config.retry_seconds
        return self._ask(self._followed, now)

    # Whom to follow

    def _follow_another(self, now: float) -> list[Effect]:
        """Go to the next one that answers. If there is none: stay with one that answers, or wait for any that will."""
        self._next_at = now + self._config.follow_seconds
        before = self._followed
        if before == self._own:
            return []
        peers = sorted(self._sources)
        ring = sorted((peer for peer in peers if peer != before), key=lambda peer: (peer < (before or ""), peer))
        answering = [peer for peer in ring if self._is_answering(peer, now)]
        if answering:
            return self._follow(answering[0], now)
        if before is not None and self._sources[before].acknowledged == NOTHING:
            self._followed = None
        return []

    def _is_answering(self, peer: PeerId, now: float) -> bool:
        source = self._sources[peer]
        return source.acknowledged > NOTHING and (source.acknowledged >= self._said.version or now < source.retry_at)

    def _follow(self, peer: PeerId, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._followed is not None:
            self._sources[self._followed].forget_stream()
            effects.append(Send(Address(self._followed, RENDEZVOUS_ACTOR), Unsubscribe()))
        self._followed = peer
        self._sources[peer].forget_stream()
        return [*effects, *self._word(now)]
