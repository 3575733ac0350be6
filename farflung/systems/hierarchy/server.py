"""What local and global parameter servers have in common (HALoS, Algorithm 1): clients, their updates, their models.

    Join -> lease, shard -> model                    UpdatePart ... -> journal -> UpdateTaken -> apply -> model

Invariants: an update is acknowledged only when all its parts and its record are durable; records are applied in the
order of the journal, each once, before and after a restart alike; a client is sent a model as it was between two
updates; versions only grow.
"""

from collections.abc import Sequence

from farflung.systems.hierarchy.clients import Arriving, Session, difference, update_problem
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.dispatcher import Dispatcher, PartJob
from farflung.systems.hierarchy.durable import Kept, update_key
from farflung.systems.hierarchy.flow import Inflow
from farflung.systems.hierarchy.merge import ServedModel
from farflung.systems.hierarchy.messages import (
    Alive,
    Fetch,
    Join,
    LeaseEnded,
    PartTaken,
    RunIdentity,
    UpdatePart,
    UpdateTaken,
    Welcome,
    WhereIs,
)
from farflung.systems.hierarchy.records import Committed, Granted, Merged
from farflung.systems.hierarchy.report import ServerReport, server_report
from farflung.systems.hierarchy.state import ServerState, keys_of
from farflung.systems.hierarchy.work import Compute, Read, Work
from farflung.wire.message import NoSuchActor, Refusal
from farflung.world.address import Address, PeerId
from farflung.world.effects import Delete, Effect, Note, Save, Send
from farflung.world.errors import PeerMisbehaved
from farflung.world.role import Role

NOT_READY_SECONDS = 1.0


class Server(Role):
    """The side of a server that faces its clients. Subclasses say what else an update brings about."""

    def __init__(
        self,
        config: HierarchyConfig,
        run: RunIdentity,
        model: ServedModel,
        kept: Kept,
        *,
        codec_down: str,
        shards: Sequence[int],
        first_dispatch: int,
        update_seconds: float,
    ) -> None:
        self.config = config
        self.run = run
        self.state = ServerState(config, run, model, kept)
        self._shards = tuple(shards)
        self._update_seconds = update_seconds / max(1, model.num_parts)
        self._sessions: dict[str, Session] = {}
        self._dispatcher = Dispatcher(config, self.state, self._sessions, codec_down, first_dispatch)

    # What subclasses change

    @property
    def is_ready(self) -> bool:
        """Whether there is a model to give to clients."""
        return True

    def _after_update(self, *, is_live: bool) -> Work:
        """An update is applied; what does it bring about beside a model for its client? (`is_live`: not replayed)"""
        counters = self.state.counters
        counters.is_over = counters.num_steps >= self.config.budget_steps
        yield from ()

    def _merge(self, record: Merged, *, is_live: bool) -> Work:
        """Merge a model of the server above."""
        raise AssertionError("a server without one above it gets no models")

    # Messages

    def start(self, now: float) -> Sequence[Effect]:
        for name, client in self.state.ledger.clients.items():
            # Nobody is known to be there until it is heard of; its lease runs on meanwhile.
            self._sessions[name] = Session(Address(PeerId(client.peer), ""), lost_at=now)
        return self.state.restore(self._replay)

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        match message:
            case Join():
                return self._join(source, message, now)
            case UpdatePart() | WhereIs() | Fetch() | Alive():
                return self._receive_of_client(source, message)
            case NoSuchActor():
                return ()
            case _:
                raise PeerMisbehaved(source.peer, f"a server does not take {type(message).__name__} messages")

    def finished(self, job: object, result: object, now: float) -> Sequence[Effect]:
        if isinstance(job, PartJob):
            return self._dispatcher.loaded(job, result)
        return self.state.queue.finished(result)

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        for session in self._sessions.values():
            if session.address.peer == peer and session.lost_at is None:
                session.lost_at = now
        return ()

    # Joining

    def _join(self, source: Address, join: Join, now: float) -> Sequence[Effect]:
        problem = difference(join, self.run)
        if problem is not None:
            return [Send(source, Refusal(reason=problem)), Note(f"refused {join.name[:60]} at {source}: {problem}")]
        client = self.state.ledger.clients.get(join.name)
        if client is not None and join.instance in client.instances:
            is_repeated = join.instance == client.instances[-1]
            return self._welcome(source, join) if is_repeated else ()
        if not self.is_ready:
            return [_later(source, "this server has no model yet", NOT_READY_SECONDS)]
        session = self._sessions.get(join.name)
        if session is not None and session.lost_at is None and session.address.peer != source.peer:
            reason = f"a worker called {join.name} is at work on {session.address.peer}: choose another name"
            return [_later(source, reason, self.config.lease_seconds)]
        shard = self._free_shard(join.name, now)
        if shard < 0 and self._shards:
            reason = f"all {len(self._shards)} shards of the data are taken: wait, or start the run with more shards"
            return [_later(source, reason, self.config.lease_seconds)]
        return self._grant(source, join, shard)

    def _free_shard(self, name: str, now: float) -> int:
        held = [
            client.shard
            for other, client in self.state.ledger.clients.items()
            if other != name and not self._sessions[other].is_lapsed(now, self.config.lease_seconds)
        ]
        return self.state.ledger.free_shard(name, self._shards, held)

    def _grant(self, source: Address, join: Join, shard: int) -> Sequence[Effect]:
        ledger = self.state.ledger
        before = ledger.clients.get(join.name)
        lease = max(join.lease, before.lease if before is not None else 0) + 1
        granted = Granted(ledger.num_records + 1, join.name, source.peer, join.instance, lease, shard, join.speed)
        forgotten = self._forget(join.name)
        self._sessions[join.name] = Session(source)
        note = f"{join.name} joins under lease {lease}" + (f" with shard {shard}" if shard >= 0 else "")
        if join.known_version > self.state.counters.version:
            note += f"; it knows version {join.known_version}, this server only {self.state.counters.version}"
        return [*forgotten, *self.state.record(granted), Note(note), *self._welcome(source, join)]

    def _forget(self, name: str) -> list[Effect]:
        """Nothing that was under way to or from a client under its lease until now is wanted any more."""
        session = self._sessions.get(name)
        if session is None:
            return []
        keys = [*self.state.unfinished(name), *session.arriving_keys(name, self.state.ledger.clients[name].lease)]
        return [*self._dispatcher.forget(session), *(Delete(key) for key in keys)]

    def _welcome(self, source: Address, join: Join) -> list[Effect]:
        client = self.state.ledger.clients[join.name]
        session = self._sessions[join.name]
        session.heard(source)
        welcome = Welcome(
            name=join.name,
            instance=join.instance,
            lease=client.lease,
            newest=self.state.ledger.newest(join.name, join.lease),
            shard=client.shard,
            cursor=self.state.ledger.cursors.get(client.shard, {}),
            global_steps=self.state.global_steps,
        )
        return [Send(source, welcome)]

    def _client(self, name: str, lease: int) -> Session | None:
        client = self.state.ledger.clients.get(name)
        if client is None or client.lease != lease or (client.shard < 0 and self._shards):
            return None
        return self._sessions[name]

    def _receive_of_client(self, source: Address, message: UpdatePart | WhereIs | Fetch | Alive) -> Sequence[Effect]:
        session = self._client(message.name, message.lease)
        if session is None:
            reason = "this server knows of no such lease"
            return [Send(source, LeaseEnded(name=message.name, lease=message.lease, reason=reason))]
        session.heard(source)
        match message:
            case UpdatePart():
                return self._update_part(session, message)
            case WhereIs():
                return self._where_is(session, message)
            case Fetch():
                return self._dispatcher.fetch(session, message)
            case Alive():
                return ()

    # Updates

    def _update_part(self, session: Session, part: UpdatePart) -> Sequence[Effect]:
        taken = UpdateTaken(name=part.name, lease=part.lease, sequence=part.sequence)
        if part.sequence <= self.state.ledger.clients[part.name].sequence:
            return [Send(session.address, taken)]
        problem = update_problem(part, self.state.model)
        if problem is not None:
            refusal = Refusal(reason=f"this update cannot be applied: {problem}")
            return [Send(session.address, refusal), Note(f"refused an update of {part.name}: {problem}")]
        arriving = self._arriving(session, part)
        if arriving is None:
            return ()
        effects: list[Effect] = []
        if not arriving.inflow.has(part.index):
            arriving.inflow.take(part.index)
            key = update_key(part.name, part.lease, part.sequence, part.index)
            effects.append(Save(key, bytes(part.slices)))
        if arriving.inflow.is_whole:
            return [*effects, *self._commit(session, part, arriving)]
        news = PartTaken(name=part.name, lease=part.lease, sequence=part.sequence, next=arriving.inflow.next)
        return [*effects, Send(session.address, news)]

    def _arriving(self, session: Session, part: UpdatePart) -> Arriving | None:
        """The update that the part belongs to; None for one that its client has given up."""
        arriving = session.arriving
        if arriving is not None and part.sequence < arriving.sequence:
            return None
        if arriving is None or part.sequence > arriving.sequence:
            arriving = Arriving(part.sequence, part.header, self._found(part.name, part.lease, part.sequence))
            session.arriving = arriving
        return arriving

    def _commit(self, session: Session, part: UpdatePart, arriving: Arriving) -> list[Effect]:
        session.arriving, session.is_preparing = None, True
        if arriving.header.base_dispatch != session.reference:
            session.reference = 0  # it does not hold the model that was sent last
        number = self.state.ledger.num_records + 1
        record = Committed(number, part.name, part.lease, part.sequence, arriving.header)
        taken = UpdateTaken(name=part.name, lease=part.lease, sequence=part.sequence)
        effects = [*self.state.record(record), Send(session.address, taken), *self._dispatcher.forget(session)]
        return [*effects, *self.state.queue.push(self._apply(record, is_live=True))]

    def _where_is(self, session: Session, message: WhereIs) -> Sequence[Effect]:
        name, lease, sequence = message.name, message.lease, message.sequence
        if sequence <= self.state.ledger.clients[name].sequence:
            return [Send(session.address, UpdateTaken(name=name, lease=lease, sequence=sequence))]
        inflow = self._found(name, lease, sequence)
        if session.arriving is not None and session.arriving.sequence == sequence:
            inflow = session.arriving.inflow
        news = PartTaken(name=name, lease=lease, sequence=sequence, next=inflow.next, ask=message.ask)
        return [Send(session.address, news)]

    def _found(self, name: str, lease: int, sequence: int) -> Inflow:
        """What an earlier life got of an update; the last part is asked for again, because it completes the update."""
        inflow = Inflow(self.state.model.num_parts)
        for index in self.state.found_parts(name, lease, sequence):
            if index < inflow.num_parts - 1:
                inflow.take(index)
        return inflow

    # Work

    def _replay(self, record: Committed | Merged) -> Work:
        if isinstance(record, Committed):
            return self._apply(record, is_live=False)
        return self._merge(record, is_live=False)

    def _apply(self, record: Committed, *, is_live: bool) -> Work:
        """One update on the model, all parts of it, and what follows from it."""
        state, header, num_bytes = self.state, record.header, 0
        for index, key in enumerate(keys_of(record)):
            data = yield Read(key)
            assert data is not None, f"{key} was acknowledged and is missing"
            num_bytes += len(data)
            yield Compute(state.model.apply_part, (index, data), self._update_seconds)
        state.model.end_update()
        counters = state.counters
        staleness = max(0, counters.version - header.base_version)
        counters.staleness[staleness] = counters.staleness.get(staleness, 0) + 1
        counters.version += 1
        counters.num_steps += header.num_steps
        counters.num_tokens += header.num_tokens
        counters.loss_sum += header.loss * header.num_steps
        state.applied(record, num_bytes)
        yield from self._after_update(is_live=is_live)
        if is_live:
            client = state.ledger.clients[record.name]
            if (client.lease, client.sequence) == (record.lease, record.sequence):
                yield from self._dispatcher.prepare(record.name)
            yield from state.save_if_due()

    def report(self) -> ServerReport:
        """What it has come to."""
        here = {name: session.lost_at is None for name, session in self._sessions.items()}
        return server_report(self.state, here)


def _later(source: Address, reason: str, seconds: float) -> Effect:
    return Send(source, Refusal(reason=reason, retry_after_seconds=seconds))
