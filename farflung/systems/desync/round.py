"""The coordinator: forms rounds from those present and decides whether an exchange counts, for all or for none.

Invariant: an exchange is committed only once every member of it has every mean, and never after it was aborted; the
decision is stored before anybody is told. A member that has said it is ready applies or drops it as it is told.

joined -> arrived -> in an exchange -> ready -> committed (the next round begins) or aborted (arrived again)
"""

import math
from collections.abc import Sequence

import msgspec

from farflung.learn.shards import shards_of
from farflung.systems.desync.adapting import Adaptation
from farflung.systems.desync.cadence import is_parameters
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.forming import (
    Forming,
    Member,
    Plan,
    form_round,
    plan_round,
    weight_of,
)
from farflung.systems.desync.messages import (
    Dealt,
    LinkCodec,
    Seat,
    SyncAbort,
    SyncArrive,
    SyncCommit,
    SyncForm,
    SyncJoin,
    SyncLeave,
    SyncReady,
    SyncStuck,
    SyncUnknown,
)
from farflung.systems.desync.plan import order_seats
from farflung.systems.desync.register import Register
from farflung.world.address import Address, PeerId
from farflung.world.doors import Store
from farflung.world.effects import Effect, Note, Send, WakeAt
from farflung.world.errors import PeerMisbehaved


class Coordinator(Register):
    """Forms the rounds of one run."""

    def __init__(self, config: DesyncConfig, store: Store) -> None:
        super().__init__(config, store)
        self._forming: Forming | None = None
        self._adaptation = Adaptation(config)

    def receive(self, source: Address, message: object, now: float) -> list[Effect]:
        """See the messages' docstrings."""
        member = self.members.get(source)
        if member is not None:
            member.heard_at, member.is_awaited = now, True
        match message:
            case SyncJoin():
                return self._join(source, message, now)
            case SyncArrive():
                return self._arrive(source, message, now)
            case SyncReady(exchange=exchange):
                return self._ready(source, exchange, now)
            case SyncStuck(exchange=exchange, member=stuck):
                return self._stuck(source, exchange, stuck, now)
            case SyncLeave():
                return self._leave(source, now)
            case _:
                return []

    def lost(self, peer: PeerId, reason: str, now: float) -> list[Effect]:
        """Its members are gone; a round they were to take part in goes on without them."""
        return self._gone([address for address in self.members if address.peer == peer], reason, now)

    def wake(self, now: float) -> list[Effect]:
        """A deadline has passed."""
        ended = self._end_leases(now)
        return [*ended, *self._wake(now)]

    def _wake(self, now: float) -> list[Effect]:
        if self._forming is not None and now >= self._forming.deadline:
            silent = now - 2 * self._config.rounds.ask_again_seconds
            late = [one for one in self._forming.seats if one not in self._forming.is_ready]
            for address in late:
                if self.members[address].heard_at < silent:
                    self.members[address].is_awaited = False
                    self.members[address].arrived_at = None
            return self._abort(f"{', '.join(map(str, late))} did not finish in time") + self._form(now)
        if self._decided.plan is None and self.members:
            return self._begin(now)
        if self.members and not self.is_over and not any(member.has_state for member in self.members.values()):
            return self._fall_back(now)
        return self._form(now)

    def _gone(self, addresses: list[Address], reason: str, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for address in addresses:
            if self.members.pop(address, None) is None:
                continue
            effects += [Note(f"{address} is gone: {reason}"), *self._leave_data(address, now)]
            if self._forming is not None and address in self._forming.seats:
                effects += self._abort(f"{address} is gone")
        return [*effects, *self._release(), *self._form(now)] if effects else []

    def _plan_after(self, num_credited: int, num_credited_last: int) -> Plan:
        before = self._decided.plan
        assert before is not None
        first = before.first + before.num_steps
        plan = plan_round(first, num_credited, self._speeds(), self.method, num_credited_last)
        is_over = num_credited >= self._config.num_worker_steps and set(before.due) >= set(plan.due)
        return Plan(first, 0, ()) if is_over else plan

    def _arrive(self, source: Address, message: SyncArrive, now: float) -> list[Effect]:
        member = self.members.get(source)
        if member is None or self._decided.plan is None:
            return [Send(source, SyncUnknown())]
        if message.round != self.round or self.is_over or self._is_void(member, message.deal):
            member.has_state = message.round == self.round
            return self._welcome(member, now)
        if self._forming is not None and source in self._forming.seats:
            return [Send(source, self._form_message(self._forming))]
        member.has_state = True
        if member.arrived_at is None:
            _check_numbers(source, message, member.begins_with.num_shards)
            member.arrived_at = now
            member.num_steps, member.loss = message.num_steps, message.loss
            member.steps_per_second, member.drift = message.steps_per_second, message.drift
            member.bytes_per_second = message.bytes_per_second
            member.deal, member.cursor = message.deal, message.cursor
            member.num_tokens_unsent += message.num_tokens
        return self._form(now)

    def _form(self, now: float) -> list[Effect]:
        if self._forming is not None or self._decided.plan is None:
            return []
        present = [member for member in self.members.values() if not member.is_waiting]
        decision = form_round(present, now, self._config.rounds)
        if not decision.members:
            return [] if decision.wake_at is None else [WakeAt(decision.wake_at)]
        for member in self.members.values():
            member.is_awaited = member.address in decision.members
        self._num_exchanges += 1
        seats = [
            Seat(address, self.members[address].site, weight_of(self.members[address], self._config))
            for address in decision.members
        ]
        deadline = now + self._config.rounds.exchange_seconds_max
        ordered = order_seats(seats, self._config)
        codecs, chosen = self._codecs(ordered)
        weights = {seat.address: seat.weight for seat in ordered}
        self._forming = Forming(self._num_exchanges, weights, now, deadline, codecs)
        message = self._form_message(self._forming)
        note = Note(f"round {self.round}: {decision.reason}; {', '.join(message.due)}, exchange {message.exchange}")
        return [note, *chosen, *(Send(seat.address, message) for seat in ordered), WakeAt(deadline)]

    def _codecs(self, seats: Sequence[Seat]) -> tuple[tuple[LinkCodec, ...], list[Note]]:
        """Codecs of the links that are left to be chosen, and what is new about them."""
        if not self._config.chooses_codecs:
            return (), []
        assert self._decided.plan is not None
        members = [self.members[seat.address] for seat in seats]
        num_values = members[0].begins_with.num_values
        codecs, sentences = self._adaptation.choose_codecs(seats, self._decided.plan.due, members, num_values)
        return codecs, [self._chosen(sentence) for sentence in sentences]

    def _form_message(self, forming: Forming) -> SyncForm:
        assert self._decided.plan is not None
        seats = tuple(Seat(one, self.members[one].site, weight) for one, weight in forming.seats.items())
        return SyncForm(
            exchange=forming.exchange,
            round=self.round,
            due=self._decided.plan.due,
            seats=seats,
            codecs=forming.codecs,
        )

    def _ready(self, source: Address, exchange: int, now: float) -> list[Effect]:
        member = self.members.get(source)
        forming = self._forming
        if forming is not None and exchange == forming.exchange and source in forming.seats:
            forming.is_ready[source] = True
            return self._commit(forming, now) if len(forming.is_ready) == len(forming.seats) else []
        if exchange == self._decided.exchange and self._decided.plan is not None:
            # Decided in an earlier life, perhaps: its members are known from their asking.
            assignment = self._assignment(0.0 if member is None else member.steps_per_second)
            dealt = Dealt() if member is None else self._deal(member)
            return [Send(source, SyncCommit(exchange=exchange, assignment=assignment, dealt=dealt))]
        return [Send(source, SyncAbort(exchange=exchange, reason="it was given up"))]

    def _stuck(self, source: Address, exchange: int, stuck: Address, now: float) -> list[Effect]:
        if self._forming is None or exchange != self._forming.exchange or source not in self._forming.seats:
            return []
        if stuck in self.members:
            until = now + self._config.rounds.ban_seconds
            self.members[stuck].banned_until, self.members[stuck].is_awaited = until, False
        return self._abort(f"{source} cannot reach {stuck}") + self._form(now)

    def _abort(self, reason: str) -> list[Effect]:
        """Nobody applies it; those that took part have still arrived."""
        forming, self._forming = self._forming, None
        assert forming is not None
        message = SyncAbort(exchange=forming.exchange, reason=reason)
        told = [Send(address, message) for address in forming.seats if address in self.members]
        return [Note(f"round {self.round}: exchange {forming.exchange} is given up: {reason}"), *told]

    def _commit(self, forming: Forming, now: float) -> list[Effect]:
        assert self._decided.plan is not None
        due = self._decided.plan.due
        is_sent = any(is_parameters(name) for name in due)
        self._forming = None
        num_steps = sum(self.members[address].num_steps for address in forming.seats)
        num_credited = self.num_credited + num_steps
        self._adaptation.exchanged(due, now - forming.began_at)
        seated = [self.members[address] for address in forming.seats]
        chosen = self._choose_periods(seated)
        self._credit(seated)
        self._decide(
            round=self.round + 1,
            num_credited=num_credited,
            num_credited_last=num_steps,
            num_members_last=len(seated),
            exchange=forming.exchange,
            plan=self._plan_after(num_credited, num_steps),
        )
        for member in self.members.values():
            member.has_state = member.address in forming.seats
            member.num_steps_unsent = 0 if is_sent else member.num_steps_unsent + member.num_steps
            member.num_tokens_unsent = 0 if is_sent else member.num_tokens_unsent
            member.arrived_at, member.num_steps = None, 0
        note = Note(f"round {self.round - 1}: exchange {forming.exchange} counts; {self.num_credited} steps so far")
        commits = [
            SyncCommit(
                exchange=forming.exchange,
                assignment=self._assignment(member.steps_per_second),
                dealt=self._deal(member),
            )
            for member in seated
        ]
        sends = [Send(member.address, commit) for member, commit in zip(seated, commits, strict=True)]
        num_steps = {member.address: one.assignment.num_steps for member, one in zip(seated, commits, strict=True)}
        shares = self._adaptation.told_steps(seated, num_steps, self._decided.plan.num_steps)
        chosen += [self._chosen(sentence) for sentence in shares]
        return [note, *chosen, *sends]

    def _choose_periods(self, members: Sequence[Member]) -> list[Note]:
        """Decide (and with the commit that follows, store) other periods, if the measurements ask for them."""
        choice = self._adaptation.choose_periods(self.method, members)
        if choice is None:
            return []
        self._decided = msgspec.structs.replace(
            self._decided, parameters_every=choice.parameters_every, moments_every=dict(choice.moments_every)
        )
        moments = ", ".join(f"{name} every {every}" for name, every in choice.moments_every.items())
        periods = f"parameters every {choice.parameters_every} steps" + (f", {moments}" if moments else "")
        return [self._chosen(f"{periods}: {choice.reason}")]


def _check_numbers(source: Address, message: SyncArrive, num_shards: int) -> None:
    told = (message.steps_per_second, message.drift, *message.bytes_per_second.values())
    if not all(0 <= number < math.inf for number in told) or message.num_steps < 0 or message.num_tokens < 0:
        raise PeerMisbehaved(source.peer, "tells of speeds or steps that cannot be")
    try:
        shards_of(message.cursor, num_shards)
    except ValueError as error:
        raise PeerMisbehaved(source.peer, str(error)) from None
