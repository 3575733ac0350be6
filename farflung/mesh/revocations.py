"""The role by which all nodes learn which tickets have been withdrawn, and remember it over restarts.

    whoever hears something new --TellRevocations--> rendezvous nodes --TellRevocations--> all nodes
    every node, now and then    --CompareRevocations--> one rendezvous node: what either lacks is told

Statements prove themselves (`wire.revocation`), so it does not matter who passes them on.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import msgspec

from farflung.mesh.config import RevocationsConfig
from farflung.mesh.messages import REVOCATIONS_ACTOR, CompareRevocations, SameRevocations, TellRevocations
from farflung.mesh.records import Record
from farflung.wire.certificate import ChainRefused
from farflung.wire.chain import Permission
from farflung.wire.revocation import Revocation, Withdrawn, check
from farflung.world.address import Address, PeerId
from farflung.world.effects import Effect, Load, Note, Save, Send, WakeAt
from farflung.world.role import Role

KEY = "revocations"
"""Under which they lie in the store."""


class Revocations(Role):
    """What is withdrawn, as this node knows it. `covers` answers from any place of the loop."""

    def __init__(
        self,
        peer: PeerId,
        view: Mapping[PeerId, Record],
        *,
        authority: bytes,
        swarm_id: bytes,
        wall_offset_seconds: float,
        on_news: Callable[[], object] = lambda: None,
        config: RevocationsConfig | None = None,
    ) -> None:
        """`view`: live nodes, this one among them. `on_news`: called when something more is withdrawn."""
        self._peer = peer
        self._view = view
        self._authority = authority
        self._swarm_id = swarm_id
        self._wall_offset_seconds = wall_offset_seconds
        self._on_news = on_news
        self._config = config or RevocationsConfig()
        self._held: dict[int, tuple[Withdrawn, Revocation]] = {}
        self._num_compared = 0

    def covers(self, permission: Permission) -> bool:
        """Whether that permission is withdrawn."""
        held = self._held.get(permission.serial)
        return held is not None and held[0].covers(permission)

    def withdraw(self, revocation: Revocation, now: float) -> Sequence[Effect]:
        """Take a statement made here; perform the effects with this role's host.

        Raises:
            ChainRefused: it proves nothing.
        """
        news, refusal = self._take([revocation], now)
        if refusal is not None:
            raise refusal
        return self._spread(news)

    @property
    def withdrawn(self) -> tuple[Withdrawn, ...]:
        """All that is known here to be withdrawn, by number."""
        return tuple(self._held[serial][0] for serial in sorted(self._held))

    @property
    def digest(self) -> bytes:
        """Equal where the same is known."""
        known = [(serial, self._held[serial][0].depth) for serial in sorted(self._held)]
        return hashlib.sha256(repr(known).encode()).digest()

    # Events

    def start(self, now: float) -> Sequence[Effect]:
        return [Load(KEY, KEY), WakeAt(now + self._config.first_compare_seconds)]

    def finished(self, job: object, result: object, now: float) -> Sequence[Effect]:
        """What this node knew before it was started again."""
        if not isinstance(result, bytes):
            return ()
        try:
            kept = msgspec.msgpack.decode(result, type=list[Revocation])
        except msgspec.MsgspecError as error:
            return [Note(f"the revocations in the store cannot be read ({error}): others are asked for them")]
        own = [revocation for revocation in kept if revocation.swarm_id == self._swarm_id]  # a home may change swarms
        _, refusal = self._take(own, now)
        return [] if refusal is None else [Note(f"a revocation in the store proves nothing: {refusal}")]

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        match message:
            case CompareRevocations(digest=digest):
                if digest == self.digest:
                    return [Send(source, SameRevocations())]
                return self._tell([source.peer], self._all(), is_answer_wanted=True)
            case TellRevocations(revocations=revocations):
                return self._told(source, message, revocations, now)
            case _:
                return ()

    def wake(self, now: float) -> Sequence[Effect]:
        self._forget(now)
        others = self._rendezvous()
        effects: list[Effect] = [WakeAt(now + self._config.compare_seconds)]
        if others:
            self._num_compared += 1
            chosen = Address(others[self._num_compared % len(others)], REVOCATIONS_ACTOR)
            effects.append(Send(chosen, CompareRevocations(digest=self.digest)))
        return effects

    # Taking in

    def _told(
        self, source: Address, message: TellRevocations, revocations: Sequence[Revocation], now: float
    ) -> list[Effect]:
        news, refusal = self._take(revocations, now)
        effects = self._spread(news)
        if refusal is not None:
            effects.append(Note(f"{source.peer} told of a revocation that proves nothing: {refusal}"))
        if message.is_answer_wanted and message.digest != self.digest:
            effects += self._tell([source.peer], self._all(), is_answer_wanted=False)
        return effects

    def _take(self, revocations: Sequence[Revocation], now: float) -> tuple[list[Revocation], ChainRefused | None]:
        """What of it is news, up to the first that proves nothing, and why that one does not."""
        wall = now + self._wall_offset_seconds
        news: list[Revocation] = []
        refusal: ChainRefused | None = None
        for revocation in revocations:
            if revocation.expires_at <= wall or self._is_known(revocation):
                continue
            try:
                withdrawn = check(revocation, self._authority, self._swarm_id, wall)
            except ChainRefused as error:
                refusal = error
                break
            if withdrawn.serial in self._held or len(self._held) < self._config.num_revocations_max:
                self._held[withdrawn.serial] = (withdrawn, revocation)
                news.append(revocation)
        if news:
            self._on_news()
        return news, refusal

    def _is_known(self, revocation: Revocation) -> bool:
        """Before the work of checking it; of two admins' words, that of the one nearer to the founder is kept."""
        known = self._held.get(int.from_bytes(revocation.serial, "big"))
        return known is not None and known[0].depth <= len(revocation.permissions)

    def _forget(self, now: float) -> None:
        wall = now + self._wall_offset_seconds
        for serial in [serial for serial, (_, held) in self._held.items() if held.expires_at <= wall]:
            del self._held[serial]

    # Passing on

    def _all(self) -> list[Revocation]:
        return [self._held[serial][1] for serial in sorted(self._held)]

    def _rendezvous(self) -> list[PeerId]:
        return [peer for peer in sorted(self._view) if peer != self._peer and self._view[peer].is_rendezvous]

    def _spread(self, news: list[Revocation]) -> list[Effect]:
        """Keep it, and tell whoever this node is to tell."""
        if not news:
            return []
        own = self._view.get(self._peer)
        is_rendezvous = own is not None and own.is_rendezvous
        others = [peer for peer in sorted(self._view) if peer != self._peer] if is_rendezvous else self._rendezvous()
        numbers = ", ".join(revocation.serial.hex()[:12] for revocation in news)
        effects: list[Effect] = [
            Save(KEY, msgspec.msgpack.encode(self._all())),
            Note(f"tickets withdrawn by an admin: {numbers}; their holders are no longer let in"),
        ]
        return [*effects, *self._tell(others, news, is_answer_wanted=False)]

    def _tell(self, peers: Sequence[PeerId], told: list[Revocation], *, is_answer_wanted: bool) -> list[Effect]:
        size = self._config.revocations_per_message_max
        parts = [told[first : first + size] for first in range(0, len(told), size)] or [[]]
        return [
            Send(
                Address(peer, REVOCATIONS_ACTOR),
                TellRevocations(
                    revocations=part,
                    digest=self.digest,
                    is_answer_wanted=is_answer_wanted and index == len(parts) - 1,
                ),
            )
            for peer in peers
            for index, part in enumerate(parts)
        ]
