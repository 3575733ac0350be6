"""Standbys of a session: other holders of its servers' blocks that keep up with them, so that after a loss only what is
newest is computed again.

The client sends a standby what enters its blocks, as it would to a replacement, but ahead of need, many positions at a
time, and to be computed when there is nothing else to do. One message is under way to each, so none is ever flooded.
Invariant: a standby is only told of steps that the whole chain has made.
"""

from collections.abc import Callable
from dataclasses import dataclass

from farflung.systems.swarm.chain import Chain, Link
from farflung.systems.swarm.config import SessionConfig
from farflung.systems.swarm.history import History
from farflung.systems.swarm.messages import ACTOR, Behind, CloseSession, SessionRefused, StandingBy
from farflung.systems.swarm.view import SwarmView
from farflung.wire.message import NoSuchActor
from farflung.world.address import Address, PeerId
from farflung.world.mailbox import Mailbox, PeerLost

LOOK_AGAIN_SECONDS = 5.0
"""Where nobody could stand by, so much later somebody may."""
AVOID_SECONDS = 60.0
"""A server that gave a standby up is not asked again for so long."""


@dataclass(slots=True, eq=False)
class Standby:
    """One server that keeps up; `link.applied` is the newest step that it was sent."""

    link: Link
    kept: int
    """The newest step that it said it has."""
    asked_at: float
    moved_at: float
    """When it said something new last."""


class Standbys:
    """All standbys of one session, at most one for each link of its chain."""

    def __init__(
        self, mailbox: Mailbox, session: str, view: SwarmView, config: SessionConfig, now: Callable[[], float]
    ) -> None:
        self._mailbox = mailbox
        self._session = session
        self._view = view
        self._config = config
        self._now = now
        self._held: dict[tuple[int, int], Standby] = {}
        self._avoided: dict[PeerId, float] = {}
        """Servers, and until when they are not asked."""
        self._look_at: dict[tuple[int, int], float] = {}

    def take(self, source: Address, message: object, chain: Chain) -> None:
        """Note what a message says of a standby."""
        match message:
            case StandingBy(first=first, last=last, upto=applied) | Behind(first=first, last=last, applied=applied):
                standby = self._held.get((first, last))
                if standby is not None and standby.link.peer == source.peer:
                    self._take_progress(standby, applied, isinstance(message, Behind))
                elif isinstance(message, StandingBy):
                    self._close_at(source.peer, chain)
            case SessionRefused(first=first, last=last, reason=reason, wants_adapter=wants_adapter):
                standby = self._held.get((first, last))
                if wants_adapter and standby is not None and standby.link.peer == source.peer:
                    standby.link.wants_adapter, standby.link.applied = True, standby.kept
                else:
                    self.drop(source.peer, reason, (first, last))
            case PeerLost(peer, reason):
                self.drop(peer, reason)
            case NoSuchActor():
                self.drop(source.peer, "it serves no blocks any more")
            case _:
                pass

    def _take_progress(self, standby: Standby, applied: int, is_behind: bool) -> None:
        """`applied` steps are there; if it `is_behind`, what was sent beyond them cannot follow."""
        if not standby.kept <= applied <= standby.link.applied or applied == 0:
            self.drop(standby.link.peer, "it has given the session up", (standby.link.first, standby.link.last))
            return
        if applied > standby.kept or is_behind:
            standby.kept, standby.moved_at = applied, self._now()
        if is_behind:
            standby.link.applied = applied

    def due(self, chain: Chain, history: History, num_tokens: int) -> list[Link]:
        """The standbys that are to be sent the steps from their `applied` to the newest one, now."""
        now, ranges = self._now(), {(link.first, link.last) for link in chain.links}
        for standby in [held for blocks, held in self._held.items() if blocks not in ranges]:
            self._forget(standby, chain)
        due: list[Link] = []
        for link in chain.links:
            standby = self._held.get((link.first, link.last)) or self._find(link, chain, history, num_tokens)
            if standby is not None and self._is_due(standby, history, chain):
                standby.asked_at = now
                due.append(standby.link)
        return due

    def _find(self, link: Link, chain: Chain, history: History, num_tokens: int) -> Standby | None:
        """Choose a server to stand by for a link; None: there is no other."""
        now, blocks = self._now(), (link.first, link.last)
        if history.length < self._config.standby_num_positions or now < self._look_at.get(blocks, now):
            return None
        self._look_at[blocks] = now + LOOK_AGAIN_SECONDS
        without = {other.peer for other in chain.links} | {peer for peer, until in self._avoided.items() if until > now}
        peer = self._view.find_standby(*blocks, without=without, num_tokens=num_tokens, num_positions=history.length)
        if peer is None:
            return None
        self._held[blocks] = standby = Standby(Link(peer, *blocks), kept=0, asked_at=now, moved_at=now)
        return standby

    def _is_due(self, standby: Standby, history: History, chain: Chain) -> bool:
        link, now, newest = standby.link, self._now(), history.num_steps
        if link.applied > standby.kept:  # a message is under way, or was lost
            if now - standby.moved_at > self._config.standby_seconds_max:
                self.drop(link.peer, "it does not keep up", (link.first, link.last))
                self._forget(standby, chain)
                return False
            if now - standby.asked_at < self._config.ask_again_seconds:
                return False
            link.applied = standby.kept
        return history.num_new(link.applied, newest) >= self._config.standby_num_positions and history.is_complete(
            link.first, newest, link.applied
        )

    def take_over(self, lost: Link) -> Link | None:
        """The standby of a link that is lost, if it has one; it is a standby no more."""
        for blocks in [blocks for blocks, held in self._held.items() if held.link.peer == lost.peer]:
            del self._held[blocks]  # lost with the server
        standby = self._held.pop((lost.first, lost.last), None)
        return standby.link if standby is not None and standby.link.applied else None

    def close(self) -> None:
        """Free the caches of all standbys."""
        for standby in self._held.values():
            self._mailbox.send(Address(standby.link.peer, ACTOR), CloseSession(session=self._session))
        self._held.clear()

    def drop(self, peer: PeerId, reason: str, blocks: tuple[int, int] | None = None) -> None:
        """Give a server's standbys up, for blocks or for all, and do not ask it again soon."""
        dropped = [each for each, held in self._held.items() if held.link.peer == peer and blocks in (None, each)]
        for each in dropped:
            del self._held[each]
            self._look_at.pop(each, None)
            self._avoided[peer] = self._now() + AVOID_SECONDS
            self._view.world.note(
                self._mailbox.actor, f"{peer} stands by for blocks {each[0]}:{each[1]} no more: {reason}"
            )

    def _forget(self, standby: Standby, chain: Chain) -> None:
        """Let a server go that stood by."""
        self._held.pop((standby.link.first, standby.link.last), None)
        self._close_at(standby.link.peer, chain)

    def _close_at(self, peer: PeerId, chain: Chain) -> None:
        """Free what a server holds of the session, unless it works or stands by for some blocks."""
        if not chain.on(peer) and all(held.link.peer != peer for held in self._held.values()):
            self._mailbox.send(Address(peer, ACTOR), CloseSession(session=self._session))
