"""The coordinator: forms rounds from those present and decides whether an exchange counts, for all or for none.

Invariant: an exchange is committed only once every member of it has every mean, and never after it was aborted; the
decision is stored before anybody is told. A member that has said it is ready applies or drops it as it is told.

joined -> arrived -> in an exchange -> ready -> committed (the next round begins) or aborted (arrived again)
"""

import msgspec

from farflung.systems.desync.cadence import is_parameters
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.forming import Forming, Member, Plan, Standing, assign, form_round, plan_round, weight_of
from farflung.systems.desync.messages import (
    Assignment,
    Seat,
    SyncAbort,
    SyncArrive,
    SyncCommit,
    SyncFarewell,
    SyncForm,
    SyncJoin,
    SyncLeave,
    SyncReady,
    SyncStuck,
    SyncUnknown,
    SyncWelcome,
)
from farflung.systems.desync.plan import order_seats
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.doors import Store
from farflung.world.effects import Effect, Note, Send, WakeAt
from farflung.world.role import Role

STORE_KEY = "desync-coordinator"
EXCHANGES_PER_LIFE_MAX = 1 << 20


class Decided(msgspec.Struct, frozen=True):
    """What outlives the coordinator's process."""

    round: int = 0
    num_credited: int = 0
    """Local steps in committed rounds, over all workers."""
    num_credited_last: int = 0
    """In the last of them."""
    exchange: int = 0
    """The last one that was committed."""
    num_exchanges: int = 0
    """No exchange of an earlier life has a number above this."""
    plan: Plan | None = None
    """Of the round that comes; None before the first."""
    fingerprint: bytes = b""
    """Of the parameters at round 0."""


class Coordinator(Role):
    """Forms the rounds of one run."""

    def __init__(self, config: DesyncConfig, store: Store) -> None:
        self._config = config
        self._store = store
        stored = store.read(STORE_KEY)
        decided = Decided() if stored is None else msgspec.json.decode(stored, type=Decided)
        self._decided = decided
        self._num_exchanges = decided.num_exchanges
        self.members: dict[Address, Member] = {}
        self._forming: Forming | None = None
        if stored is not None:
            self._decide(num_exchanges=decided.num_exchanges)

    @property
    def round(self) -> int:
        """Rounds committed."""
        return self._decided.round

    @property
    def num_credited(self) -> int:
        """Local steps in committed rounds, over all workers."""
        return self._decided.num_credited

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent and all replicas are equal."""
        return self._decided.plan is not None and not self._decided.plan.due

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
                return self._leave(source)
            case _:
                return []

    def lost(self, peer: PeerId, reason: str, now: float) -> list[Effect]:
        """Its members are gone; a round they were to take part in goes on without them."""
        return self._gone([address for address in self.members if address.peer == peer], reason, now)

    def wake(self, now: float) -> list[Effect]:
        """A deadline has passed."""
        if self._forming is not None and now >= self._forming.deadline:
            silent = now - 2 * self._config.rounds.ask_again_seconds
            late = [one for one in self._forming.seats if one not in self._forming.is_ready]
            for address in late:
                if self.members[address].heard_at < silent:
                    self.members[address].is_awaited = False
                    self.members[address].arrived_at = None
            return self._abort(f"{', '.join(map(str, late))} did not finish in time") + self._form(now)
        return self._begin(now) if self._decided.plan is None and self.members else self._form(now)

    # Members

    def _join(self, source: Address, message: SyncJoin, now: float) -> list[Effect]:
        if message.run != self._config.fingerprint:
            return [Send(source, Refusal(reason="this run has other settings: start with its run file"))]
        known = self.members.get(source)
        if known is not None and known.life == message.life:
            known.has_state = self._is_current(message)
            return self._welcome(known) if self._decided.plan is not None else []
        effects = self._gone([source], "it has begun anew", now)
        if not self._decided.fingerprint:
            self._decide(fingerprint=message.fingerprint)
        has_state = self._is_current(message)
        member = Member(source, message.life, message.site, message.steps_per_second, now, now, has_state)
        self.members[source] = member
        effects.append(Note(f"{source} of {message.site} joins at round {self.round}"))
        if self._decided.plan is not None:
            return effects + self._welcome(member)
        return effects + self._begin(now)

    def _begin(self, now: float) -> list[Effect]:
        """Begin the run if enough are there."""
        rounds, num_members = self._config.rounds, len(self.members)
        deadline = min((member.joined_at for member in self.members.values()), default=now) + rounds.deadline_seconds
        is_late = now >= deadline and num_members >= rounds.quorum
        if num_members < max(rounds.quorum, rounds.num_members_at_start) and not is_late:
            return [Note(f"{num_members} of {rounds.num_members_at_start} are there"), WakeAt(deadline)]
        self._decide(plan=plan_round(0, 0, self._speeds(), self._config))
        return [effect for one in self.members.values() for effect in self._welcome(one)]

    def _is_current(self, message: SyncJoin) -> bool:
        is_equal = message.round > 0 or message.fingerprint == self._decided.fingerprint
        return message.round == self.round and is_equal

    def _welcome(self, member: Member) -> list[Effect]:
        donor = None if member.has_state else self._donor_for(member)
        if donor is None and not member.has_state:
            if self.is_over:
                return [Send(member.address, Refusal(reason="this run is over and its members have left"))]
            return [Note(f"nobody has the state that {member.address} needs")]
        return [Send(member.address, SyncWelcome(assignment=self._assignment(member), donor=donor))]

    def _donor_for(self, newcomer: Member) -> Address | None:
        donors = [one for one in self.members.values() if one.has_state and one is not newcomer]
        nearest = sorted(donors, key=lambda one: (one.site != newcomer.site, one.address))
        return nearest[0].address if nearest else None

    def _gone(self, addresses: list[Address], reason: str, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for address in addresses:
            if self.members.pop(address, None) is None:
                continue
            effects.append(Note(f"{address} is gone: {reason}"))
            if self._forming is not None and address in self._forming.seats:
                effects += self._abort(f"{address} is gone")
        return [*effects, *self._release(), *self._form(now)] if effects else []

    def _leave(self, source: Address) -> list[Effect]:
        if source not in self.members:
            return [Send(source, SyncFarewell())]
        self.members[source].is_done = True
        return self._release()

    def _release(self) -> list[Effect]:
        """Let all go once nobody needs anybody's state."""
        if not self.is_over or not all(member.is_done for member in self.members.values()):
            return []
        leaving, self.members = list(self.members), {}
        return [Send(address, SyncFarewell()) for address in leaving]

    # Rounds

    def _plan_after(self, num_credited: int, num_credited_last: int) -> Plan:
        before = self._decided.plan
        assert before is not None
        first = before.first + before.num_steps
        plan = plan_round(first, num_credited, self._speeds(), self._config, num_credited_last)
        is_over = num_credited >= self._config.num_worker_steps and set(before.due) >= set(plan.due)
        return Plan(first, 0, ()) if is_over else plan

    def _speeds(self) -> list[float]:
        return [member.steps_per_second for member in self.members.values()]

    def _assignment(self, member: Member) -> Assignment:
        assert self._decided.plan is not None
        decided = self._decided
        standing = Standing(decided.round, decided.num_credited, decided.num_credited_last, tuple(self._speeds()))
        return assign(self._decided.plan, standing, member, self._config)

    def _arrive(self, source: Address, message: SyncArrive, now: float) -> list[Effect]:
        member = self.members.get(source)
        if member is None or self._decided.plan is None:
            return [Send(source, SyncUnknown())]
        if message.round != self.round or self.is_over:
            member.has_state = message.round == self.round
            return self._welcome(member)
        if self._forming is not None and source in self._forming.seats:
            return [Send(source, self._form_message(self._forming))]
        member.has_state = True
        if member.arrived_at is None:
            member.arrived_at = now
            member.num_steps, member.loss = message.num_steps, message.loss
            member.steps_per_second = message.steps_per_second
            member.num_tokens_unsent += message.num_tokens
        return self._form(now)

    def _form(self, now: float) -> list[Effect]:
        if self._forming is not None or self._decided.plan is None:
            return []
        decision = form_round(list(self.members.values()), now, self._config.rounds)
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
        self._forming = Forming(self._num_exchanges, {seat.address: seat.weight for seat in ordered}, deadline)
        message = self._form_message(self._forming)
        note = Note(f"round {self.round}: {decision.reason}; {', '.join(message.due)}, exchange {message.exchange}")
        return [note, *(Send(seat.address, message) for seat in ordered), WakeAt(deadline)]

    def _form_message(self, forming: Forming) -> SyncForm:
        assert self._decided.plan is not None
        seats = tuple(Seat(one, self.members[one].site, weight) for one, weight in forming.seats.items())
        return SyncForm(exchange=forming.exchange, round=self.round, due=self._decided.plan.due, seats=seats)

    def _ready(self, source: Address, exchange: int, now: float) -> list[Effect]:
        member = self.members.get(source)
        forming = self._forming
        if forming is not None and exchange == forming.exchange and source in forming.seats:
            forming.is_ready[source] = True
            return self._commit(forming) if len(forming.is_ready) == len(forming.seats) else []
        if exchange == self._decided.exchange and self._decided.plan is not None:
            # Decided in an earlier life, perhaps: its members are known from their asking.
            assignment = self._assignment(member or Member(source, 0, "", 0.0, now, now, True))
            return [Send(source, SyncCommit(exchange=exchange, assignment=assignment))]
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

    def _commit(self, forming: Forming) -> list[Effect]:
        assert self._decided.plan is not None
        is_sent = any(is_parameters(name) for name in self._decided.plan.due)
        self._forming = None
        num_steps = sum(self.members[address].num_steps for address in forming.seats)
        num_credited = self.num_credited + num_steps
        self._decide(
            round=self.round + 1,
            num_credited=num_credited,
            num_credited_last=num_steps,
            exchange=forming.exchange,
            plan=self._plan_after(num_credited, num_steps),
        )
        for member in self.members.values():
            member.has_state = member.address in forming.seats
            member.num_steps_unsent = 0 if is_sent else member.num_steps_unsent + member.num_steps
            member.num_tokens_unsent = 0 if is_sent else member.num_tokens_unsent
            member.arrived_at, member.num_steps = None, 0
        note = Note(f"round {self.round - 1}: exchange {forming.exchange} counts; {self.num_credited} steps so far")
        members = [self.members[address] for address in forming.seats]
        commits = [
            Send(member.address, SyncCommit(exchange=forming.exchange, assignment=self._assignment(member)))
            for member in members
        ]
        return [note, *commits]

    def _decide(self, **changes: object) -> None:
        reserved = self._num_exchanges + EXCHANGES_PER_LIFE_MAX
        self._decided = msgspec.structs.replace(self._decided, num_exchanges=reserved, **changes)
        self._store.write(STORE_KEY, msgspec.json.encode(self._decided))
