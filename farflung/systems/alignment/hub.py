"""The hub: a role beside the trainer that hands out prompts, takes answers, and says where new weights are.

Whatever it says is taken lies in its journal before it says so. The trainer beside it calls its methods for steps and
versions, and carries out the effects that they return; every other node speaks to it in messages.
"""

import math
from collections.abc import Sequence

import msgspec

from farflung.systems.alignment.admission import Admission, NotKept
from farflung.systems.alignment.chain import Chain
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.deltas import Packed
from farflung.systems.alignment.leases import Key
from farflung.systems.alignment.ledger import Answer, Ledger
from farflung.systems.alignment.members import Member, why_waiting
from farflung.systems.alignment.messages import (
    TRAINER_ACTOR,
    AlignAsk,
    AlignChanged,
    AlignDone,
    AlignHolds,
    AlignJoin,
    AlignJoinAgain,
    AlignLeases,
    AlignNews,
    AlignPath,
    AlignPathAsk,
    AlignTaken,
    AlignWelcome,
)
from farflung.systems.alignment.protocols import Environment
from farflung.systems.alignment.records import CHAIN, JOURNAL, Arrived, Banned, Entry, GaveUp, Record, Stepped
from farflung.systems.alignment.rollouts import Task
from farflung.systems.alignment.seeder import chunk_key
from farflung.wire.message import Message, Refusal
from farflung.world.address import Address, PeerId
from farflung.world.effects import Append, Delete, Effect, Note, Save, Send, WakeAt
from farflung.world.role import Role
from farflung.world.version import __version__


class Hub(Role):
    """See the module; `num_records` are in the journal or in the checkpoint already."""

    def __init__(
        self,
        me: PeerId,
        run: bytes,
        config: AlignmentConfig,
        environment: Environment,
        ledger: Ledger,
        chain: Chain,
        num_records: int = 0,
    ) -> None:
        self.ledger = ledger
        self.chain = chain
        self.members: dict[str, Member] = {}
        self.num_records = num_records
        self.is_closed = False
        """The trainer has said that it is done; workers may go."""
        self._me = me
        self._run = run
        self._config = config
        self._environment = environment
        self._admission = Admission(config, ledger, chain, environment)

    def start(self, now: float) -> Sequence[Effect]:
        return self.wake(now)

    def wake(self, now: float) -> Sequence[Effect]:
        """Look for leases that are over."""
        freed = self.ledger.leases.expire(now)
        note = [Note(f"{len(freed)} answers are free again: nothing was heard of them")] if freed else []
        return [*note, *(self._feed() if freed else []), *self._changed(), WakeAt(now + self._config.ask_again_seconds)]

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        for name, member in self.members.items():
            if member.address.peer == peer:
                self.ledger.leases.doubt(name, now)
        return self._changed()

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        if isinstance(message, AlignJoin):
            return self._join(source, message, now)
        if not isinstance(message, AlignAsk | AlignDone | AlignPathAsk | AlignHolds):
            return ()
        if message.name in self.ledger.state.banned:
            return [Send(source, self._refusal(message.name))]
        member = self.members.get(message.name)
        if member is None or member.address != source:
            return [Send(source, AlignJoinAgain(name=message.name))]
        member.heard_at = now
        match message:
            case AlignAsk():
                return self._ask(member, message, now)
            case AlignDone():
                return self._done(member, message, now)
            case AlignPathAsk():
                return [Send(source, self._path(message))]
            case AlignHolds():
                return self._holds(member, message)

    def _join(self, source: Address, message: AlignJoin, now: float) -> Sequence[Effect]:
        if message.name in self.ledger.state.banned:
            return [Send(source, self._refusal(message.name))]
        if (message.code, message.run) != (__version__, self._run):
            what = (
                f"version {message.code} of the program" if message.code != __version__ else "other settings or tokens"
            )
            return [Send(source, Refusal(reason=f"{message.name} has {what} than this run: start it with the same"))]
        known = self.members.get(message.name)
        if known is not None and known.address != source and now - known.heard_at < self._config.silence_seconds:
            reason = f"there is already a worker {message.name}: give each a name of its own"
            return [Send(source, Refusal(reason=reason, retry_after_seconds=self._config.silence_seconds))]
        self.members[message.name] = Member(source, now)
        welcome = AlignWelcome(version=self.chain.newest, ask=message.ask)
        return [Note(f"{message.name} takes part"), Send(source, welcome), *self._changed()]

    def _refusal(self, name: str) -> Refusal:
        return Refusal(reason=f"{name} is banned from this run: {self.ledger.state.banned[name]}")

    # Tasks

    def _ask(self, member: Member, message: AlignAsk, now: float) -> Sequence[Effect]:
        member.version = message.version
        member.answers_per_second = message.answers_per_second
        dropped = self.ledger.renew(message.name, message.running, now)
        wanted = min(message.num_answers, self._share(member, message, now))
        keys, reason = self.ledger.give(message.name, message.version, wanted, now)
        member.is_hungry = len(keys) < message.num_answers
        tasks, effects = self._tasks(keys)
        leases = AlignLeases(
            tasks=tasks,
            dropped=tuple(dropped),
            version=self.chain.newest,
            version_min=self.ledger.version_needed(0),
            reason=reason,
            retry_after_seconds=self._config.ask_again_seconds,
            is_over=self.is_closed,
            ask=message.ask,
        )
        return [*effects, Send(member.address, leases)]

    def _share(self, member: Member, message: AlignAsk, now: float) -> int:
        """How many answers this worker should have of those that are free, so that all end at the same time.

        Each time a part in proportion to its speed: what is left is divided ever finer, so the last ones are short.
        But a share that is sampled sooner than the next one can be here makes it wait for the way: of such it is given
        more at once, up to its part of all that is under way.
        """
        present = [one for one in self.members.values() if now - one.heard_at < self._config.silence_seconds]
        known = [one.answers_per_second for one in present if one.answers_per_second]
        usual = sum(known) / len(known) if known else 1.0
        speed = member.answers_per_second or usual
        part = speed / sum(one.answers_per_second or usual for one in present)
        num_free = self.ledger.num_free()
        num_open = part * (num_free + len(self.ledger.leases)) - len(message.running)
        num_meanwhile = member.answers_per_second * message.round_trip_seconds
        return math.ceil(max(part * num_free, min(num_open, num_meanwhile))) or 1

    def _tasks(self, keys: Sequence[Key]) -> tuple[tuple[Task, ...], list[Effect]]:
        """The tasks of these answers; a prompt that the environment cannot make is given up."""
        members: dict[int, list[int]] = {}
        for prompt, one in keys:
            members.setdefault(prompt, []).append(one)
        tasks: list[Task] = []
        effects: list[Effect] = []
        for prompt, ones in members.items():
            try:
                tokens = self._environment.prompt(prompt)
            except ValueError as error:
                effects += self.give_up(prompt, str(error))
                continue
            tasks.append(Task(prompt, tuple(ones), tokens, self._config.seed, self._config.num_tokens_max))
        return tuple(tasks), effects

    # Answers

    def _done(self, member: Member, message: AlignDone, now: float) -> Sequence[Effect]:
        taken: list[Answer] = []
        refused: list[tuple[int, int, str]] = []
        useless: list[NotKept] = []
        for rollout in message.rollouts:
            why_not = self._admission.why_not(rollout)
            if why_not is None and rollout.key not in [answer.rollout.key for answer in taken]:
                taken.append(Answer(message.name, rollout))
                continue
            refused.append((*rollout.key, "it came twice" if why_not is None else why_not.reason))
            useless += [why_not] if why_not is not None and why_not.kind != "late" else []
            self.ledger.leases.release(message.name, rollout.key)
        effects: list[Effect] = self._write(Arrived(tuple(taken))) if taken else []
        for answer in taken:
            self.ledger.arrived(answer, now)
        for failure in message.failures:
            for one in failure.members:
                self.ledger.leases.release(message.name, (failure.prompt, one))
            effects += [Note(f"{message.name} could not sample prompt {failure.prompt}: {failure.reason}")]
            if not self.ledger.is_closed(failure.prompt) and self.ledger.failed(failure.prompt):
                effects += self.give_up(failure.prompt, failure.reason)
        member.num_taken += len(taken)
        member.num_refused += len(refused)
        if useless:
            effects.append(Note(f"{len(useless)} answers of {message.name} are of no use: {useless[0].reason}"))
        effects.append(Send(member.address, AlignTaken(batch=message.batch, refused=tuple(refused))))
        false = [why_not.reason for why_not in useless if why_not.kind == "false"]
        member.num_false += len(false)
        if member.num_false > self._config.false_answers_max:
            effects += self.ban(message.name, f"{member.num_false} of its answers are not of this run: {false[-1]}")
        return [*effects, *self._changed()]

    def _write(self, record: Record) -> list[Effect]:
        self.num_records += 1
        return [Append(JOURNAL, msgspec.msgpack.encode(Entry(self.num_records, record)))]

    def _changed(self) -> list[Effect]:
        return [Send(Address(self._me, TRAINER_ACTOR), AlignChanged())]

    # Weights

    def _path(self, message: AlignPathAsk) -> AlignPath:
        holders = tuple(
            str(member.address.peer)
            for name, member in sorted(self.members.items())
            if member.version == self.chain.newest and name != message.name
        )
        manifests = self.chain.path(message.version, message.weights_hash)
        return AlignPath(manifests=manifests, holders=holders, ask=message.ask)

    def _holds(self, member: Member, message: AlignHolds) -> Sequence[Effect]:
        member.version, member.trouble = message.version, message.reason
        if not message.reason:
            return ()
        return [Note(f"{message.name} keeps version {message.version}, not {message.failed_version}: {message.reason}")]

    # What the trainer asks for

    def stepped(self, record: Stepped) -> list[Effect]:
        """A step was made: its groups are closed, durably."""
        effects = self._write(record)
        self.ledger.stepped([group.prompt for group in record.groups], record.version)
        return effects + self._feed()

    def give_up(self, prompt: int, reason: str) -> list[Effect]:
        """Nobody can sample or judge a prompt."""
        self.ledger.give_up(prompt)
        return [Note(f"prompt {prompt} is given up: {reason}"), *self._write(GaveUp(prompt, reason)), *self._feed()]

    def ban(self, worker: str, reason: str) -> list[Effect]:
        """Take nothing of a worker any more, and sample anew what it sent and nobody has trained on."""
        member = self.members.pop(worker, None)
        if member is not None:
            reason = f"{reason}; found out after {member.num_taken} of its answers"
        self.ledger.state.banned[worker] = reason
        dropped = self.ledger.drop_of(worker)
        self.ledger.leases.end_all(worker)
        effects: list[Effect] = [Note(f"{worker} is banned, {len(dropped)} answers are sampled anew: {reason}")]
        return [
            *effects,
            *self._write(Banned(worker, reason)),
            *self._feed(),
            *([Send(member.address, self._refusal(worker))] if member is not None else []),
        ]

    def publish(self, packed: list[Packed]) -> list[Effect]:
        """A version lies here whole: tell everybody. The old chunks go once nobody can be told of them any more."""
        chunks = {digest: data for one in packed for digest, data in one.chunks.items()}
        effects: list[Effect] = [Save(chunk_key(digest), data) for digest, data in chunks.items()]
        superfluous = self.chain.add(packed)
        effects.append(Save(CHAIN, msgspec.msgpack.encode(self.chain.published)))
        effects += [Delete(chunk_key(digest)) for digest in superfluous if digest not in chunks]
        return effects + self._tell_all(AlignNews(version=self.chain.newest))

    def close(self) -> list[Effect]:
        """The run is over: workers learn it now, or when they next ask."""
        self.is_closed = True
        return self._tell_all(AlignNews(version=self.chain.newest))

    def _tell_all(self, message: Message) -> list[Effect]:
        return [Send(member.address, message) for member in self.members.values()]

    def _feed(self) -> list[Effect]:
        """There is something to sample again: let those ask who had too little."""
        hungry = [member for member in self.members.values() if member.is_hungry]
        for member in hungry:
            member.is_hungry = False
        return [Send(member.address, AlignNews(version=self.chain.newest)) for member in hungry]

    def why_waiting(self, now: float) -> tuple[str, str]:
        """What a trainer without a batch waits for: a word for the account, and a sentence."""
        return why_waiting(self.members, self.ledger, self._config, now)
