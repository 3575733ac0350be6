"""Who belongs to a run and what is decided: joining, the state of newcomers, falling back, leaving.

What is decided is stored before anybody is told. If nobody is left who has the outcome of the newest round, the run
goes back to the newest that somebody has.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from farflung.learn.shards import ORDER, ShardLedger
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.forming import Decided, Member, Standing, assign, plan_round
from farflung.systems.desync.messages import Assignment, Dealt, SyncFarewell, SyncJoin, SyncWelcome
from farflung.wire.message import Refusal
from farflung.world.address import Address
from farflung.world.doors import Store
from farflung.world.effects import Effect, Note, Send, WakeAt
from farflung.world.role import Role

DECISIONS_MAX = 1000
"""Sentences that are kept until somebody takes them."""
STORE_KEY = "desync-coordinator"
EXCHANGES_PER_LIFE_MAX = 1 << 20
"""Numbers that a life of the coordinator may give before it stores a decision."""


class Register(Role):
    """The coordinator's members, and where the run is."""

    def __init__(self, config: DesyncConfig, store: Store) -> None:
        self._config = config
        self._store = store
        stored = store.read(STORE_KEY)
        decided = Decided() if stored is None else msgspec.json.decode(stored, type=Decided)
        self._decided = decided
        self._num_exchanges = decided.num_exchanges
        self.members: dict[Address, Member] = {}
        self._absent: dict[str, float] = {}
        """Holders of data that are not members now, and when their leases end."""
        self.decisions: deque[str] = deque(maxlen=DECISIONS_MAX)
        """What this life has chosen by measurements, with reasons; whoever writes it down takes it out."""
        if stored is not None:
            self._decide()  # what this life numbers must be above what the last one did

    @property
    def round(self) -> int:
        """Rounds committed."""
        return self._decided.round

    @property
    def num_credited(self) -> int:
        """Local steps in committed rounds, over all workers."""
        return self._decided.num_credited

    @property
    def ledgers(self) -> Mapping[int, ShardLedger]:
        """Who reads what, where data are dealt, by the order of the data."""
        return self._decided.ledgers

    @property
    def num_drawn(self) -> int:
        """Samples that committed rounds were trained on, where data are dealt."""
        return sum(sum(ledger.drawn.values()) for ledger in self.ledgers.values())

    @property
    def method(self) -> DesyncConfig:
        """The settings with the periods that hold now."""
        decided = self._decided
        if not decided.parameters_every:
            return self._config
        return self._config.with_periods(decided.parameters_every, decided.moments_every)

    def _chosen(self, sentence: str) -> Note:
        self.decisions.append(sentence)
        return Note(sentence)

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent and all replicas are equal."""
        return self._decided.plan is not None and not self._decided.plan.due

    def start(self, now: float) -> list[Effect]:
        """Holders of data have a lease's time to be heard of again."""
        ends_at = now + self._config.rounds.lease_seconds
        self._absent = {name: ends_at for one in self._decided.ledgers.values() for name in one.admitted}
        return [WakeAt(ends_at)] if self._absent else []

    @abstractmethod
    def _gone(self, addresses: list[Address], reason: str, now: float) -> list[Effect]:
        """Members are not there any more."""

    def _join(self, source: Address, message: SyncJoin, now: float) -> list[Effect]:
        if message.run != self._config.fingerprint:
            return [Send(source, Refusal(reason="this run has other settings: start with its run file"))]
        if message.num_shards and self._num_sharing(message.order, source) >= message.num_shards:
            reason = f"all {message.num_shards} shards of the data are read: begin a run with more shards"
            return [Send(source, Refusal(reason=reason))]
        known = self.members.get(source)
        if known is not None and known.begins_with.life == message.life:
            known.begins_with, known.has_state = message, self._is_current(message)
            return self._welcome(known, now) if self._decided.plan is not None else []
        effects = self._gone([source], "it has begun anew", now)
        if not self._decided.fingerprint:
            self._decide(fingerprint=message.fingerprint)
        has_state = self._is_current(message)
        member = Member(source, message.site, message.steps_per_second, message, now, now, has_state)
        self.members[source] = member
        effects.append(Note(f"{source} of {message.site} joins at round {self.round}"))
        if self._decided.plan is not None:
            return effects + self._welcome(member, now)
        return effects + self._begin(now)

    def _begin(self, now: float) -> list[Effect]:
        """Begin the run if enough are there."""
        rounds, num_members = self._config.rounds, len(self.members)
        deadline = min((member.joined_at for member in self.members.values()), default=now) + rounds.deadline_seconds
        is_late = now >= deadline and num_members >= rounds.quorum
        if num_members < max(rounds.quorum, rounds.num_members_at_start) and not is_late:
            return [Note(f"{num_members} of {rounds.num_members_at_start} are there"), WakeAt(deadline)]
        self._admit(list(self.members.values()))  # all of them before any is dealt what others shall have
        self._decide(plan=plan_round(0, 0, self._speeds(), self.method))
        return [effect for one in self.members.values() for effect in self._welcome(one, now)]

    def _is_current(self, message: SyncJoin) -> bool:
        is_equal = message.round > 0 or message.fingerprint == self._decided.fingerprint
        return message.round == self.round and is_equal

    def _welcome(self, member: Member, now: float) -> list[Effect]:
        dealt = Dealt() if self.is_over else self._deal(member)
        has_data = any(key != ORDER for key in dealt.cursor)
        member.is_waiting = member.begins_with.num_shards > 0 and not has_data and not self.is_over
        if member.is_waiting:
            return [Note(f"{member.address} waits until a shard of the data is free")]
        donor = None if member.has_state else self._donor_for(member)
        if donor is None and not member.has_state and not self.is_over:
            return self._fall_back(now)
        # Where nobody has the result any more because those who had it have left, one can only end without it.
        assignment = self._assignment(member.steps_per_second)
        return [Send(member.address, SyncWelcome(assignment=assignment, donor=donor, dealt=dealt))]

    # Data

    def _num_sharing(self, order: int, newcomer: Address) -> int:
        """Members other than `newcomer` that read data of that order."""
        sharing = [one for one in self.members.values() if one.begins_with.num_shards]
        return sum(one.begins_with.order == order and one.address != newcomer for one in sharing)

    def _deal(self, member: Member) -> Dealt:
        """What a member draws from now; stored, if that is news."""
        if not member.begins_with.num_shards:
            return Dealt()
        self._admit([member])
        ledger, name = self._decided.ledgers[member.begins_with.order], _name(member.address)
        before = ledger.num_deals
        deal = ledger.deal(name)
        if ledger.num_deals != before:
            self._decide()
        return Dealt(deal.number, deal.since, deal.cursor)

    def _admit(self, members: Sequence[Member]) -> None:
        """Let these share the data; one that there is no shard for waits until a lease ends."""
        for member in members:
            said, name = member.begins_with, _name(member.address)
            if not said.num_shards:
                continue
            self._absent.pop(name, None)
            ledger = self._decided.ledgers.setdefault(said.order, ShardLedger(said.num_shards, said.order))
            if name not in ledger.admitted and len(ledger.admitted) < ledger.num_shards:
                ledger.admit([*ledger.admitted, name])
                self._decide()

    def _is_void(self, member: Member, deal: int) -> bool:
        """Whether what a member has drawn under that deal is another's by now."""
        ledger = self._decided.ledgers.get(member.begins_with.order)
        is_dealt = member.begins_with.num_shards > 0
        return is_dealt and (ledger is None or not ledger.is_valid(_name(member.address), deal))

    def _credit(self, members: Sequence[Member]) -> None:
        """What these have drawn counts (and is stored with the decision that follows)."""
        for member in members:
            if member.begins_with.num_shards:
                ledger = self._decided.ledgers[member.begins_with.order]
                ledger.report(_name(member.address), member.deal, member.cursor)

    def _leave_data(self, address: Address, now: float) -> list[Effect]:
        """A member is gone: after its lease others read its data."""
        name, ends_at = _name(address), now + self._config.rounds.lease_seconds
        if not any(name in ledger.admitted for ledger in self._decided.ledgers.values()):
            return []
        self._absent[name] = ends_at
        return [WakeAt(ends_at)]

    def _end_leases(self, now: float) -> list[Effect]:
        """Deal the data of those that have been gone for too long to the others."""
        ended = [name for name, ends_at in self._absent.items() if now >= ends_at]
        for name in ended:
            del self._absent[name]
            for ledger in self._decided.ledgers.values():
                if name in ledger.admitted:
                    ledger.admit([one for one in ledger.admitted if one != name])
        if not ended:
            return []
        self._decide()
        return [Note(f"the data of {name} are dealt to others: it has been away for too long") for name in ended]

    def _fall_back(self, now: float) -> list[Effect]:
        """Nobody has the state of the present round: go back to the newest that somebody has, once all had time."""
        joined = list(self.members.values())
        deadline = min(member.joined_at for member in joined) + self._config.rounds.deadline_seconds
        if len(joined) < self._config.rounds.num_members_at_start and now < deadline:
            return [Note(f"nobody has the state of round {self.round}; waiting for more members"), WakeAt(deadline)]
        newest = max(joined, key=lambda member: member.begins_with.round)
        said = newest.begins_with
        for member in joined:
            member.has_state = member.begins_with == msgspec.structs.replace(
                said,
                life=member.begins_with.life,
                site=member.begins_with.site,
                steps_per_second=member.begins_with.steps_per_second,
            )
            member.arrived_at = None
        self._decide(
            round=said.round,
            num_credited=said.num_credited,
            num_credited_last=0,
            exchange=0,
            plan=plan_round(said.first, said.num_credited, self._speeds(), self.method),
            fingerprint=self._decided.fingerprint if said.round else said.fingerprint,
        )
        note = Note(f"nobody has the newest state: back to round {self.round} of {newest.address}")
        return [note, *(effect for member in joined for effect in self._welcome(member, now))]

    def _donor_for(self, newcomer: Member) -> Address | None:
        donors = [one for one in self.members.values() if one.has_state and one is not newcomer]
        nearest = sorted(donors, key=lambda one: (one.site != newcomer.site, one.address))
        return nearest[0].address if nearest else None

    def _leave(self, source: Address, now: float) -> list[Effect]:
        if source not in self.members:
            return [Send(source, SyncFarewell())]
        if not self.is_over:
            return [Send(source, SyncFarewell()), *self._gone([source], "it was stopped", now)]
        self.members[source].is_done = True
        return self._release()

    def _release(self) -> list[Effect]:
        """Let all go once nobody needs anybody's state."""
        if not self.is_over or not all(member.is_done for member in self.members.values()):
            return []
        leaving, self.members = list(self.members), {}
        return [Send(address, SyncFarewell()) for address in leaving]

    def _speeds(self) -> list[float]:
        return [member.steps_per_second for member in self.members.values()]

    def _assignment(self, speed: float) -> Assignment:
        assert self._decided.plan is not None
        decided = self._decided
        standing = Standing(
            decided.round,
            decided.num_credited,
            decided.num_credited_last,
            decided.num_members_last,
            tuple(self._speeds()),
        )
        return assign(self._decided.plan, standing, speed, self.method)

    def _decide(self, **changes: object) -> None:
        reserved = self._num_exchanges + EXCHANGES_PER_LIFE_MAX
        self._decided = msgspec.structs.replace(self._decided, num_exchanges=reserved, **changes)
        self._store.write(STORE_KEY, msgspec.json.encode(self._decided))


def _name(address: Address) -> str:
    """Of a holder of data, the same in all its lives."""
    return f"{address.peer}/{address.actor}"
