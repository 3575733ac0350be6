"""What a candidate does while it orders: seats measurers, gives out slots, closes rounds, tells what counts.

Its state is worthless once another orders: who measures joins there, and sends again what is not in the journal.
"""

from collections.abc import Callable, Sequence

from farflung.systems.onebyte.auditing import Auditing
from farflung.systems.onebyte.claims import claimed_key
from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.header import header_hash
from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.log import Log
from farflung.systems.onebyte.messages import (
    ByteEntries,
    ByteJoin,
    ByteNews,
    ByteNotSequencer,
    ByteReady,
    ByteSignature,
    ByteSpent,
)
from farflung.systems.onebyte.ordering import Ordering
from farflung.systems.onebyte.packing import packed_record, unpack
from farflung.systems.onebyte.rounds import Rounds
from farflung.systems.onebyte.seats import Seat, Seats
from farflung.systems.onebyte.slots import runs, shares
from farflung.systems.onebyte.spending import Spending
from farflung.wire.identity import Identity
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.effects import Effect, Note, Send
from farflung.world.errors import PeerMisbehaved
from farflung.world.version import __version__

Order = Callable[[Sequence[bytes], float], list[Effect]]
"""Puts records into the journal of all, at a time."""


class Leading:
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
        """`draw(n)`: a secret random number below n, with which slots are chosen that are measured twice."""
        self.seats = Seats()
        self.ordering = Ordering(config, log, identity)
        self.rounds = Rounds(config, self.ordering.ledger, now)
        self._me = me
        self._config = config
        self._log = log
        self._order = order
        self._auditing = Auditing(config, draw, self.rounds, self.seats)
        shared = log.header.shared_slots
        self.spending = Spending(0 if shared is None else shared.participants_min)
        self._num_told = 0
        """Records that count and that measurers may be told of."""
        self._names: dict[str, str] = {}
        self._packed: dict[int, bytes] = {}
        """The newest records as they travel, by number."""
        self._measured_at: float | None = None

    @property
    def ledger(self) -> Ledger:
        """The journal as it is ordered."""
        return self.ordering.ledger

    @property
    def _is_settled(self) -> bool:
        """Everything ordered so far counts; a crash may have left records without the round that they precede."""
        return self._num_told == self.ordering.ends[-1]

    @property
    def _is_open(self) -> bool:
        """A round is open: slots can be given out."""
        return self._is_settled and not self.ordering.is_measured

    def receive(self, source: Address, message: object, now: float) -> list[Effect]:
        """A measurer says something."""
        if isinstance(message, ByteJoin):
            return self._join(source, message)
        found = self.seats.at(source)
        if found is None:
            return [Send(source, ByteNotSequencer(sequencer=self._me))]
        key, seat = found
        match message:
            case ByteReady():
                return self._ready(key, seat, message, now)
            case ByteSpent():
                return self._retire(key, now)
            case ByteEntries():
                return self._take_entries(key, seat, message, now)
            case ByteSignature():
                return self._take_signature(key, message, now)
            case _:
                return []

    def lost(self, peer: PeerId, now: float) -> list[Effect]:
        """Nobody there measures any more: its slots go to whoever has nothing to do."""
        for key in [key for key, seat in self.seats if seat.address.peer == peer]:
            self._unseat(key)
        return self._occupy(now)

    # Who measures

    def _join(self, source: Address, message: ByteJoin) -> list[Effect]:
        key = claimed_key(message, source.peer).hex()
        reason = None
        if message.run != header_hash(self.ledger.header):
            reason = "this is another run: start from its own run file"
        elif message.code != __version__:
            reason = f"this run is on version {__version__}: install the same on every machine"
        elif self.ordering.is_banned(key):
            reason = "what this measurer sent was refuted by others, and it is banned from this run"
        if reason is not None:
            return [Send(source, Refusal(reason=reason))]
        if (before := self.seats.at(source)) is not None:
            self._unseat(before[0])
        if (seat := self.seats.get(key)) is None or seat.instance != message.instance:
            self.rounds.release(key)
            self.spending.forget(key)
        public_key = bytes.fromhex(key)
        self.seats.put(key, Seat(address=source, public_key=public_key, name=message.name, instance=message.instance))
        self._names[key] = message.name
        return [Note(f"{message.name} measures")]

    def _unseat(self, key: str) -> None:
        self.seats.remove(key)
        self.rounds.release(key)

    def _retire(self, key: str, now: float) -> list[Effect]:
        self.spending.add(key)
        self.rounds.release(key)
        return self._close_if_due(now)

    def _measuring(self) -> dict[str, Seat]:
        """Who can be given slots."""
        current = self.seats.current()
        return {key: current[key] for key in self.spending.able(current)}

    # What it is told

    def _ready(self, key: str, seat: Seat, message: ByteReady, now: float) -> list[Effect]:
        if message.num_records > self._num_told:
            # Told by another sequencer: either it will count here as soon as the standbys confirm it, or this one has
            # been replaced and does not know it yet. What its own log holds there says nothing.
            return []
        if self._log.check_after(message.num_records) != message.check:
            return [Send(seat.address, Refusal(reason="this is not the journal that this measurer holds"))]
        seat.num_records, seat.is_current = message.num_records, False
        if message.num_records < self._num_told:
            return [self._news(seat, [])]
        seat.is_current = True
        return [self._news(seat, self._slots_for(key, seat, now))]

    def _news(self, seat: Seat, slots: Sequence[int]) -> Send:
        """The records that follow, as far as they fit, and slots."""
        first = seat.num_records
        records = self._log.piece(first, self._num_told, self._config.catch_up_bytes)
        seat.num_records = first + len(records)
        seat.is_current = seat.num_records == self._num_told
        check = self._log.check_after(seat.num_records) if records else b""
        records = tuple(self._packed.get(number, content) for number, content in enumerate(records, start=first))
        given = tuple(slots) if seat.is_current else ()
        return Send(seat.address, ByteNews(first_record=first, records=records, check=check, slots=given))

    def announce(self, num_committed: int, now: float) -> list[Effect]:
        """So many records count now; measurers hear of them, and of what to measure next."""
        num_told = self.ordering.end_before(num_committed)
        if num_told <= self._num_told:
            return []
        first, self._num_told = self._num_told, num_told
        new = enumerate(self._log.contents[first:num_told], start=first)
        self._packed = {number: packed_record(content, self.ledger) for number, content in new}
        self.rounds.opened_at = now
        if self.ordering.is_measured and self._measured_at is None:
            self._measured_at = now
        slots = self._share_out(now) if self._is_open else {}
        return [self._news(seat, slots.get(key, ())) for key, seat in self.seats.current().items()]

    def _share_out(self, now: float) -> dict[str, tuple[int, ...]]:
        """Slots of the round that begins, to all who are ready."""
        given = {key: runs(self._issue(key, seat, now)) for key, seat in self._measuring().items()}
        audits = {key: runs(numbers) for key, numbers in self._auditing.choose(now)}
        return {key: audits.get(key, ()) + numbers for key, numbers in given.items()}

    def _issue(self, key: str, seat: Seat, now: float) -> list[int]:
        """Slots of its own, by its speed."""
        speeds = {each: other.speed for each, other in self.seats.current().items()}
        count = shares(len(self.rounds.slots), speeds, self._config.slots_per_lease_min).get(key, 0)
        numbers = self.rounds.slots.issue(key, count, now)
        seat.given_at, seat.num_given = now, len(numbers)
        return numbers

    def _slots_for(self, key: str, seat: Seat, now: float) -> tuple[int, ...]:
        """What it owes, or else what nobody has, or else what others have had for too long."""
        slots = self.rounds.slots
        if not self._is_open or key not in self._measuring():
            return ()
        numbers = slots.owed(key) or self._issue(key, seat, now)
        if not numbers:
            overdue = slots.overdue(key, now, self.seats.patience(self._config.reissue_seconds))
            numbers = slots.assign(key, overdue[: max(self._config.slots_per_lease_min, len(overdue) // 2)], now)
        return runs(numbers)

    # What it sends

    def _take_entries(self, key: str, seat: Seat, message: ByteEntries, now: float) -> list[Effect]:
        base_round, first_slot = divmod(message.place, self.ledger.header.num_slots)
        reference = self.ledger.reference_of(base_round)
        try:
            compared = self.rounds.take(key, base_round, first_slot, unpack(message.codes, reference or 0))
        except ValueError as error:
            raise PeerMisbehaved(seat.address.peer, f"it sends {error}") from None
        if not self.rounds.slots.owed(key):
            seat.finished(now)
        effects: list[Effect] = []
        for name, reason in self._auditing.compare(base_round, compared or ()):
            effects += self._ban(name, reason)
        referees = self._auditing.referees(now) if self._is_open else {}
        effects += [self._news(self.seats.current()[name], runs(numbers)) for name, numbers in referees.items()]
        return [*effects, *self._close_if_due(now), *self._occupy(now, key)]

    def _ban(self, key: str, reason: str) -> list[Effect]:
        seat = self.seats.get(key)
        self.ordering.ban(key, reason)
        for slots in self.rounds.all_slots():
            slots.forget(key)
        self.seats.remove(key)
        effects: list[Effect] = [Note(f"{self._names.get(key, key[:12])} is banned: {reason}")]
        return effects if seat is None else [*effects, Send(seat.address, Refusal(reason=f"banned: {reason}"))]

    def _take_signature(self, key: str, message: ByteSignature, now: float) -> list[Effect]:
        self.ordering.sign(key, message.end_round, message.signature)
        outvoted = self._auditing.hear_state(key, message.end_round, message.state)
        return [*self._refuse(outvoted, message.end_round), *self._close_if_due(now)]

    def _refuse(self, outvoted: Sequence[str], end_round: int) -> list[Effect]:
        """Whose weights are not those of the others can only measure nonsense."""
        effects: list[Effect] = []
        for key in outvoted:
            seat = self.seats.get(key)
            if seat is not None:
                self._unseat(key)
                reason = f"its weights after round {end_round - 1} are not those of the others: start it anew"
                effects += [Note(f"{seat.name}: {reason}"), Send(seat.address, Refusal(reason=reason))]
        return effects

    # Closing

    def _close_if_due(self, now: float) -> list[Effect]:
        if not self._is_settled or self.ledger.is_closed:
            return []
        if self._is_at_end(now):
            return self._close_run(now)
        reason = self.rounds.is_due(now)
        if reason is None:
            return []
        number = self.rounds.number
        contributors = [(key, self._names[key]) for key in self.rounds.contributors()]
        contents = self.ordering.close_round(contributors, self.rounds.parts, self.seats)
        self._begin_round(now)
        return [Note(f"round {number} closes: {reason}"), *self._order(contents, now)]

    def _is_at_end(self, now: float) -> bool:
        """Every round is ordered that the run has, or can have."""
        if not self.ordering.is_measured and not self.ledger.is_closed:
            known, present = self.ordering.participants(), [key for key, _ in self.seats]
            is_late = now - self.rounds.opened_at >= self._config.round_seconds_max
            self.ordering.reason = self.spending.end(known, present, is_late=is_late)
            self._measured_at = now if self.ordering.reason else None
        return self.ordering.is_measured

    def _begin_round(self, now: float) -> None:
        self.rounds.open(now)
        self._auditing.forget_before(self.rounds.first_number)

    def _close_run(self, now: float) -> list[Effect]:
        is_time_over = self._measured_at is not None and now - self._measured_at > self._config.seal_seconds_max
        contents = self.ordering.close_run(self.seats, is_time_over=is_time_over)
        note = Note(f"the run is over: {self.ordering.reason or 'it has all its rounds'}")
        return [note, *self._order(contents, now)] if contents else []

    def tick(self, now: float) -> list[Effect]:
        """To be called in regular intervals: what is due by time."""
        return [*self._occupy(now), *self._close_if_due(now)]

    def _occupy(self, now: float, only: str | None = None) -> list[Effect]:
        """Slots for those who owe none (for `only`, if it is one of them): free ones, or such as are overdue."""
        seats = self.seats.current() if self._is_open else {}
        idle = [key for key in seats if only in (None, key) and not self.rounds.slots.owed(key)]
        return [self._news(seats[key], numbers) for key in idle if (numbers := self._slots_for(key, seats[key], now))]
