"""What a candidate does while it orders a run of masked entries: it forms cohorts, and sees sums.

A round belongs to one cohort: those who are ready when it begins. When all of them have sent what they measured, its
sum goes into the journal. When one is lost before, the round ends empty and the next begins with those who are left,
along other directions: a second sum along the same ones, over fewer, would tell what the lost one had measured.
"""

from collections.abc import Callable, Sequence

from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.header import header_hash
from farflung.systems.onebyte.leading import Leading, Order
from farflung.systems.onebyte.log import Log
from farflung.systems.onebyte.masks import COHORT_CHECK_BYTES, VALUE_TYPE, cohort_hash, mask_key_of, unmasked_sum
from farflung.systems.onebyte.messages import ByteCohort, ByteEntries, ByteJoin, ByteMasked, ByteReady
from farflung.systems.onebyte.seats import Seat
from farflung.systems.onebyte.sharing import PARTICIPANTS_MAX
from farflung.wire.identity import Identity, Signed
from farflung.world.address import Address, PeerId
from farflung.world.effects import Effect, Note, Send
from farflung.world.errors import PeerMisbehaved


class MaskedLeading(Leading):
    """One candidate's time as sequencer."""

    def __init__(
        self,
        me: PeerId,
        config: RoundsConfig,
        log: Log,
        identity: Identity,
        order: Order,
        draw: Callable[[int], int],
        now: float,
    ) -> None:
        super().__init__(me, config, log, identity, order, draw, now)
        shared = log.header.shared_slots
        assert shared is not None
        self._participants_min = shared.participants_min
        self._run = header_hash(log.header)
        self._mask_keys: dict[str, Signed] = {}
        """By key of a participant: of its present life."""
        self._cohort: dict[str, Signed] = {}
        """Of the open round; empty: it has none yet."""
        self._check = b""
        self._masked: dict[str, bytes] = {}
        """By key: what a member of it has sent."""
        self._formed_at = now
        self._broken = "its cohort may have been that of another sequencer"
        """Why the open round will have no sum. It is ended before a cohort is formed: no round has two."""

    def receive(self, source: Address, message: object, now: float) -> list[Effect]:
        """A measurer says something."""
        found = self.seats.at(source)
        if isinstance(message, ByteEntries):
            raise PeerMisbehaved(source.peer, "it sends entries without masks")
        if not isinstance(message, ByteMasked) or found is None:
            return super().receive(source, message, now)
        return self._take_masked(found[0], found[1], message, now)

    def _join(self, source: Address, message: ByteJoin) -> list[Effect]:
        was_broken = self._broken
        effects = super()._join(source, message)
        key = message.claim.public_key.hex()
        if self.seats.get(key) is None:
            return effects
        signed = message.mask_key
        try:
            if signed is None or signed.public_key != message.claim.public_key:
                raise ValueError("a mask key that is not its own")
            mask_key_of(signed, self._run)
        except ValueError as error:
            raise PeerMisbehaved(source.peer, f"it joins with {error}") from None
        if self._mask_keys.get(key) == signed:
            self._broken = was_broken  # the same life, which can still send what it owes
        else:
            self._lose(key)
            self._mask_keys[key] = signed
        return effects

    def _unseat(self, key: str) -> None:
        super()._unseat(key)
        self._lose(key)

    def _lose(self, key: str) -> None:
        if key in self._cohort and key not in self._masked:
            self._broken = f"{self._names[key]} left its cohort"

    # Cohorts

    def _share_out(self, now: float) -> dict[str, tuple[int, ...]]:
        """Cohorts are asked, not told by the news."""
        return {}

    def _slots_for(self, key: str, seat: Seat, now: float) -> tuple[int, ...]:
        return ()

    def announce(self, num_committed: int, now: float) -> list[Effect]:
        """So many records count now; measurers hear of them, and the next cohort is formed."""
        effects = super().announce(num_committed, now)
        return [*effects, *self._form(now)] if effects else []

    def _ready(self, key: str, seat: Seat, message: ByteReady, now: float) -> list[Effect]:
        effects = super()._ready(key, seat, message, now)
        if not seat.is_current or not self._is_open:
            return effects
        if self._cohort:
            owes = key in self._cohort and key not in self._masked
            return [*effects, self._question(seat, is_known=False)] if owes else effects
        return [*effects, *self._form(now)]

    def _form(self, now: float) -> list[Effect]:
        """All who are ready measure the open round, if they are enough."""
        present = [key for key in self._measuring() if key in self._mask_keys]
        if not self._is_open or self._cohort or self._broken or len(present) < self._participants_min:
            return []
        before = self._check
        self._cohort = {key: self._mask_keys[key] for key in present[:PARTICIPANTS_MAX]}
        self._check = cohort_hash(list(self._cohort.values()))[:COHORT_CHECK_BYTES]
        self._masked, self._formed_at = {}, now
        is_known = self._check == before
        return [self._question(seat, is_known=is_known) for key, seat in self.seats if key in self._cohort]

    def _question(self, seat: Seat, *, is_known: bool) -> Send:
        members = () if is_known else tuple(self._cohort.values())
        cohort = ByteCohort(round_number=self.ledger.num_rounds, check=self._check, members=members)
        return Send(seat.address, cohort)

    # Sums

    def _take_masked(self, key: str, seat: Seat, message: ByteMasked, now: float) -> list[Effect]:
        if (message.round_number, message.check) != (self.ledger.num_rounds, self._check) or key not in self._cohort:
            return []
        if len(message.values) != VALUE_TYPE.itemsize * (self.ledger.header.num_slots + 1):
            raise PeerMisbehaved(seat.address.peer, "it sends another number of entries than it was asked for")
        self._masked.setdefault(key, message.values)
        return self._close_if_due(now)

    def _retire(self, key: str, now: float) -> list[Effect]:
        self._lose(key)
        return super()._retire(key, now)

    def _close_if_due(self, now: float) -> list[Effect]:
        if not self._is_open or self._is_at_end(now):
            return super()._close_if_due(now)
        cohort = [(key, self._names[key]) for key in self._cohort]
        missing = [key for key in self._cohort if key not in self._masked]
        if self._cohort and not missing:
            contents = self.ordering.close_sum(cohort, unmasked_sum(self._masked.values()), self.seats)
            return self._next_round(f"all {len(cohort)} of its cohort have sent", contents, now)
        is_late = now - self._formed_at >= self._config.round_seconds_max
        if not self._broken and not (self._cohort and is_late):
            return []
        for key in missing:
            seat = self.seats.get(key)
            if seat is not None and is_late:
                seat.is_current = False  # until it says that it is there
        reason = self._broken or f"its time is over, and {len(missing)} of its cohort are missing"
        return self._next_round(f"empty: {reason}", self.ordering.close_round([], lambda _: (), self.seats), now)

    def _next_round(self, reason: str, contents: Sequence[bytes], now: float) -> list[Effect]:
        self._cohort, self._broken = {}, ""
        self._begin_round(now)
        return [Note(f"round {self.rounds.number - 1} closes: {reason}"), *self._order(contents, now)]
