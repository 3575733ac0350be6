"""Models on their way from a server to its clients: each as it was at one moment, part by part, a few parts ahead.

A model is encoded between two updates, so that its parts are of one version however long it takes to travel; it waits
in memory as long as all that wait there are small together, else on disk.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from farflung.learn.parameters import num_bytes
from farflung.systems.hierarchy.clients import Leaving, Session
from farflung.systems.hierarchy.config import ABSOLUTE_CODECS, FIRST_CODEC, HierarchyConfig
from farflung.systems.hierarchy.durable import dispatch_key, reference_key
from farflung.systems.hierarchy.flow import Outflow
from farflung.systems.hierarchy.merge import digest
from farflung.systems.hierarchy.messages import Fetch, ModelHeader, ModelPart, Sent
from farflung.systems.hierarchy.pace import scaled_steps
from farflung.systems.hierarchy.state import ServerState
from farflung.systems.hierarchy.work import Compute, Read, Work
from farflung.world.doors import World
from farflung.world.effects import Delete, Effect, Load, Save, Send


@dataclass(frozen=True, slots=True)
class PartJob:
    """A part of a model that is read from disk to be sent."""

    name: str
    dispatch: int
    index: int


def first_dispatch(world: World) -> int:
    """A number above those that earlier lives gave to the models they sent: by the clock, with room for a life's."""
    return int(world.clock.wall_seconds() * 1000) << 20


class Dispatcher:
    """Sends models to the clients of one server."""

    def __init__(
        self,
        config: HierarchyConfig,
        state: ServerState,
        sessions: Mapping[str, Session],
        codec: str,
        first_dispatch: int,
    ) -> None:
        self._config = config
        self._state = state
        self._sessions = sessions
        self._codec = codec
        self._is_relative = codec not in ABSOLUTE_CODECS
        self._num_dispatches = first_dispatch
        self._resident_bytes = num_bytes(state.model.parameters) * (2 if self._is_relative else 1)
        """For one client: a model on its way and, where differences travel, what the client has."""

    def prepare(self, name: str) -> Work:
        """Encode the model as it is now and send its first parts to the client; its turn comes with the queue's."""
        session = self._sessions.get(name)
        if session is None or not session.is_preparing:
            return
        self._num_dispatches += 1
        header = self._header(name, session)
        leaving = Leaving(self._num_dispatches, header, Outflow(header.num_parts, self._config.num_parts_ahead))
        yield from self.forget(session)
        if session.is_on_disk is None:
            session.is_on_disk = not self._has_room()
        session.leaving, session.is_preparing, session.reference = leaving, False, leaving.dispatch
        for index in range(header.num_parts):
            data = yield from self._encode(name, session, index, is_difference=header.reference > 0)
            if session.leaving is not leaving:
                session.reference = 0
                return
            if session.is_on_disk:
                yield Save(dispatch_key(leaving.dispatch, index), data)
            else:
                leaving.resident[index] = data
            leaving.outflow.ready = index + 1
            yield from self._send_next(name, session)

    def _has_room(self) -> bool:
        """Whether models for one more client may wait in memory."""
        num_resident = sum(1 for session in self._sessions.values() if session.is_on_disk is False)
        return (num_resident + 1) * self._resident_bytes <= self._config.resident_bytes_max

    def _encode(self, name: str, session: Session, index: int, *, is_difference: bool) -> Generator[Any, Any, bytes]:
        """A part of the model; where models travel as differences, what the client then has is kept."""
        model = self._state.model
        if not self._is_relative:
            return (yield Compute(model.dispatch_part, (index, self._codec)))
        if is_difference:
            base = (yield Read(reference_key(name, index))) if session.is_on_disk else session.held[index]
            data, held = yield Compute(model.difference_part, (index, base, self._codec))
        else:
            data = held = yield Compute(model.dispatch_part, (index, FIRST_CODEC))
        if session.is_on_disk:
            yield Save(reference_key(name, index), held)
        else:
            session.held[index] = held
        return data

    def _header(self, name: str, session: Session) -> ModelHeader:
        state, client = self._state, self._state.ledger.clients[name]
        num_steps, speed_max = self._config.num_local_steps, state.speed_max
        if self._config.is_speed_scaled and client.speed and speed_max:
            num_steps = scaled_steps(num_steps, client.speed, speed_max)
        return ModelHeader(
            num_parts=state.model.num_parts,
            sequence=client.sequence,
            version=state.counters.version,
            num_local_steps=num_steps,
            global_steps=state.global_steps,
            speed_max=speed_max,
            is_over=state.counters.is_over,
            reference=session.reference if self._is_relative else 0,
        )

    def forget(self, session: Session) -> list[Effect]:
        """Nothing more of the model on its way to that client is wanted."""
        leaving, session.leaving = session.leaving, None
        if leaving is None or not session.is_on_disk:
            return []
        left = range(leaving.outflow.arrived, leaving.outflow.ready)
        return [Delete(dispatch_key(leaving.dispatch, index)) for index in left]

    def fetch(self, session: Session, message: Fetch) -> list[Effect]:
        """The client says what it has of a model, or asks where it is."""
        client, leaving = self._state.ledger.clients[message.name], session.leaving
        if message.sequence != client.sequence:
            return []
        if leaving is None:
            return [*self._begin(message.name, session), *self._answer(session, message)]
        if message.dispatch == leaving.dispatch and message.is_lost and message.next < leaving.outflow.arrived:
            # It had them and has lost them, in a crash: it gets a model anew, and not as a difference.
            session.reference = 0
            return [*self.forget(session), *self._begin(message.name, session)]
        effects: list[Effect] = []
        if message.dispatch == leaving.dispatch:
            effects += self._take_news(session, leaving, message)
        effects += self._send_next(message.name, session)
        return [*effects, *self._answer(session, message)]

    def _begin(self, name: str, session: Session) -> list[Effect]:
        if session.is_preparing:
            return []
        session.is_preparing = True
        return self._state.queue.push(self.prepare(name))

    def _take_news(self, session: Session, leaving: Leaving, message: Fetch) -> list[Effect]:
        before = leaving.outflow.arrived
        if message.is_lost:
            leaving.outflow.rewind(message.next)
        else:
            leaving.outflow.take_news(message.next)
        arrived = range(before, leaving.outflow.arrived)
        for index in arrived:
            leaving.resident.pop(index, None)
        return [Delete(dispatch_key(leaving.dispatch, index)) for index in arrived] if session.is_on_disk else []

    def _answer(self, session: Session, message: Fetch) -> list[Effect]:
        """Say what was sent, behind what was sent."""
        if not message.ask:
            return []
        leaving = session.leaving
        sent = Sent(
            name=message.name,
            lease=message.lease,
            sequence=message.sequence,
            dispatch=leaving.dispatch if leaving else 0,
            upto=leaving.outflow.sent if leaving else 0,
            ask=message.ask,
        )
        return [Send(session.address, sent)]

    def _send_next(self, name: str, session: Session) -> list[Effect]:
        leaving = session.leaving
        assert leaving is not None
        effects: list[Effect] = []
        for index in leaving.outflow.next_parts():
            if session.is_on_disk:
                effects.append(Load(PartJob(name, leaving.dispatch, index), dispatch_key(leaving.dispatch, index)))
            else:
                effects.append(self._part(name, session, leaving, index, leaving.resident[index]))
        return effects

    def loaded(self, job: PartJob, data: object) -> list[Effect]:
        """A part was read from disk."""
        session = self._sessions.get(job.name)
        if session is None or session.leaving is None or session.leaving.dispatch != job.dispatch:
            return []
        assert isinstance(data, bytes), "a part of a model that is being sent is missing"
        return [self._part(job.name, session, session.leaving, job.index, data)]

    def _part(self, name: str, session: Session, leaving: Leaving, index: int, data: bytes) -> Effect:
        part = ModelPart(
            name=name,
            lease=self._state.ledger.clients[name].lease,
            dispatch=leaving.dispatch,
            index=index,
            header=leaving.header,
            digest=digest(data),
            slices=memoryview(data),
        )
        return Send(session.address, part)
