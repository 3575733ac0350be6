"""The client's side of a link to a server (pure): join, send an update, get the next model, whatever is lost meanwhile.

    join -> (upload ->) fetch -> idle -> upload -> fetch -> idle ...

Both a worker and a local server hold one. Invariant: an update is sent until it is known to be durable at the server,
and no longer; it is never sent under two leases unless the server has said that the first did not take it.
"""

from collections.abc import Callable
from enum import Enum

from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.flow import Inflow, Outflow
from farflung.systems.hierarchy.merge import digest
from farflung.systems.hierarchy.messages import (
    Fetch,
    Join,
    LeaseEnded,
    ModelHeader,
    ModelPart,
    PartTaken,
    RunIdentity,
    Sent,
    UpdateHeader,
    UpdatePart,
    UpdateTaken,
    Welcome,
    WhereIs,
)
from farflung.wire.message import NoSuchActor, Refusal
from farflung.world.address import Address, PeerId
from farflung.world.effects import Effect, Note, Send

AFTER_LOSS_SECONDS = 1.0
"""Pause before a server is asked again whose link broke."""
BULK_BYTES_MIN = 1 << 20
"""Parts of more bytes may be overtaken by the questions that follow them,"""
SLOWEST_BYTES_PER_SECOND = 250_000.0
"""so these wait for as long as such parts may need on the slowest link."""


class Phase(Enum):
    """What the client waits for."""

    IDLE = "idle"
    JOIN = "join"
    UPLOAD = "upload"
    FETCH = "fetch"


class Uplink:
    """One client's state of one link. The owner performs the effects and calls `wake` at `ask_at`."""

    def __init__(
        self,
        config: HierarchyConfig,
        run: RunIdentity,
        name: str,
        server: Address,
        num_parts: int,
        *,
        part_bytes: int,
        new_instance: Callable[[], str],
        send_part: Callable[[int], list[Effect]],
        take_part: Callable[[ModelPart], list[Effect]],
        lease: int = 0,
    ) -> None:
        """`part_bytes`: of the largest part, uncompressed. `send_part(index)` and `take_part(part)`: effects that send
        a part of the pending update, or begin to, and that keep a part of a model."""
        self._config = config
        self._run = run
        self.name = name
        self.server = server
        self._num_parts, self._new_instance = num_parts, new_instance
        self._send_part = send_part
        self._take_part = take_part
        self.phase = Phase.IDLE
        self.lease = lease
        self.sequence = 0
        """Of the newest update."""
        self.header: UpdateHeader | None = None
        """Of the update whose fate is not known."""
        self.welcome: Welcome | None = None
        """The newest one."""
        self.model: ModelHeader | None = None
        """Of the newest model that is here as a whole."""
        self.refused: str | None = None
        """Why the server will not have this client."""
        self.num_taken = 0
        """Updates that were acknowledged in this life."""
        self.speed = 0.0
        self.ask_at = float("inf")
        self._patience = config.ask_again_seconds
        self._ask = 0
        self._instance = ""
        self._outflow = Outflow(num_parts, config.num_parts_ahead, ready=num_parts)
        self._inflow = Inflow(num_parts)
        self._dispatch = 0
        self.held = 0
        """Number under which `model` was sent."""
        self._fetched_sequence = 0
        in_flight = part_bytes * min(num_parts, config.num_parts_ahead) if part_bytes > BULK_BYTES_MIN else 0
        self._transfer_seconds = in_flight / SLOWEST_BYTES_PER_SECOND

    # What the owner wants

    def join(self, now: float) -> list[Effect]:
        """Ask to take part; an update whose fate is not known stays pending."""
        self.phase, self._instance = Phase.JOIN, self._new_instance()
        self._be_patient(now)
        return [self._join_message()]

    def upload(self, sequence: int, header: UpdateHeader, now: float) -> list[Effect]:
        """Send the update of that number, whose parts `send_part` gives."""
        assert sequence > self.sequence or self.header is None
        self.sequence, self.header = sequence, header
        if not self.lease:
            return self.join(now)
        return self._begin_upload(now)

    def part(self, index: int, data: bytes) -> Effect:
        """A part of the pending update as a message."""
        assert self.header is not None
        message = UpdatePart(
            name=self.name,
            lease=self.lease,
            sequence=self.sequence,
            index=index,
            header=self.header,
            digest=digest(data),
            slices=memoryview(data),
        )
        return Send(self.server, message)

    def wake(self, now: float) -> list[Effect]:
        """Ask the server, if it has been silent for too long."""
        if self.phase is Phase.IDLE or now < self.ask_at:
            return []
        self._ask += 1
        self.ask_at = now + self._patience
        self._patience = min(2 * self._patience, self._config.ask_again_seconds_max + self._transfer_seconds)
        match self.phase:
            case Phase.JOIN:
                return [self._join_message()]
            case Phase.UPLOAD:
                message = WhereIs(name=self.name, lease=self.lease, sequence=self.sequence, ask=self._ask)
                return [Send(self.server, message)]
            case _:
                return [self._fetch(ask=self._ask)]

    def lost(self, peer: PeerId, now: float) -> None:
        """The way to a peer broke: what was under way may be gone."""
        if peer == self.server.peer and self.phase is not Phase.IDLE:
            self.ask_at = min(self.ask_at, now + AFTER_LOSS_SECONDS)

    # Messages

    def receive(self, source: Address, message: object, now: float) -> list[Effect]:
        """A message came; those that are not of this link, or late, change nothing."""
        if source != self.server:
            return []
        match message:
            case Welcome():
                return self._welcomed(message, now)
            case Refusal():
                return self._refused(message, now)
            case NoSuchActor():
                self.lost(source.peer, now)
                return []
            case PartTaken() | UpdateTaken() | Sent() | ModelPart() | LeaseEnded() if message.lease == self.lease:
                return self._receive_under_lease(message, now)
            case _:
                return []

    def _receive_under_lease(
        self, message: PartTaken | UpdateTaken | Sent | ModelPart | LeaseEnded, now: float
    ) -> list[Effect]:
        match message:
            case LeaseEnded():
                note = Note(f"lease {self.lease} of {self.name} ended: {message.reason}")
                # An idle client has an update under way soon, and joins with that.
                return [note, *self.join(now)] if self.phase in (Phase.UPLOAD, Phase.FETCH) else []
            case PartTaken() if self.phase is Phase.UPLOAD and message.sequence == self.sequence:
                return self._part_taken(message, now)
            case UpdateTaken() if self.phase is Phase.UPLOAD and message.sequence == self.sequence:
                return self._update_taken(now)
            case Sent() if self.phase is Phase.FETCH and message.ask == self._ask:
                return self._sent(message)
            case ModelPart():
                return self._model_part(message, now)
            case _:
                return []

    def _welcomed(self, message: Welcome, now: float) -> list[Effect]:
        if self.phase is not Phase.JOIN or message.instance != self._instance:
            return []
        self.lease, self.welcome = message.lease, message
        if self.header is not None and message.newest < self.sequence:
            return self._begin_upload(now)
        if self.header is not None:
            return self._update_taken(now, is_under_new_lease=True)
        return self._begin_fetch(now, sequence=0)

    def _refused(self, message: Refusal, now: float) -> list[Effect]:
        if not message.retry_after_seconds:
            self.refused = message.reason
        elif self.phase is Phase.JOIN:
            self.ask_at = now + message.retry_after_seconds
        return [Note(f"{self.server} refuses {self.name}: {message.reason}")]

    def _part_taken(self, message: PartTaken, now: float) -> list[Effect]:
        if self._outflow.take_news(message.next):
            self._be_patient(now)
        if message.ask and message.ask == self._ask:
            self._outflow.rewind(message.next)
        return self._send_next()

    def _update_taken(self, now: float, *, is_under_new_lease: bool = False) -> list[Effect]:
        self.header = None
        self.num_taken += 1
        return self._begin_fetch(
            now, sequence=0 if is_under_new_lease else self.sequence, is_silent=not is_under_new_lease
        )

    def _model_part(self, part: ModelPart, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.phase is Phase.UPLOAD and part.header.sequence == self.sequence:
            effects += self._update_taken(now)  # it has overtaken the acknowledgement
        if self.phase is not Phase.FETCH or part.header.sequence != self._fetched_sequence:
            return effects
        if part.dispatch < self._dispatch or digest(part.slices) != part.digest:
            return effects
        if part.header.num_parts != self._num_parts or not 0 <= part.index < self._num_parts:
            return [*effects, Note(f"{self.server} sends parts of another model")]
        if part.dispatch > self._dispatch:
            self._dispatch, self._inflow = part.dispatch, Inflow(self._num_parts)
        if not self._inflow.has(part.index):
            self._inflow.take(part.index)
            effects += self._take_part(part)
        self._be_patient(now)
        effects.append(self._fetch())
        if self._inflow.is_whole:
            self.phase, self.model, self.ask_at = Phase.IDLE, part.header, float("inf")
            self.held = part.dispatch
        return effects

    def _sent(self, message: Sent) -> list[Effect]:
        """All that was sent before this answer and is not here is lost."""
        if message.dispatch > self._dispatch and message.upto:
            self._dispatch, self._inflow = message.dispatch, Inflow(self._num_parts)
        if message.dispatch == self._dispatch and message.upto > self._inflow.next:
            return [self._fetch(is_lost=True)]
        return []

    # Steps

    def _begin_upload(self, now: float) -> list[Effect]:
        self.phase = Phase.UPLOAD
        self._outflow = Outflow(self._num_parts, self._config.num_parts_ahead, ready=self._num_parts)
        self._be_patient(now)
        return self._send_next()

    def _begin_fetch(self, now: float, *, sequence: int, is_silent: bool = False) -> list[Effect]:
        """Wait for a model; `is_silent`: the server sends it without being asked."""
        self.phase, self._fetched_sequence = Phase.FETCH, sequence
        self._inflow = Inflow(self._num_parts)
        self._be_patient(now)
        return [] if is_silent else [self._fetch()]

    def _send_next(self) -> list[Effect]:
        return [effect for index in self._outflow.next_parts() for effect in self._send_part(index)]

    def _fetch(self, *, ask: int = 0, is_lost: bool = False) -> Effect:
        message = Fetch(
            name=self.name,
            lease=self.lease,
            sequence=self._fetched_sequence,
            dispatch=self._dispatch,
            next=self._inflow.next,
            ask=ask,
            is_lost=is_lost,
        )
        return Send(self.server, message)

    def _join_message(self) -> Effect:
        message = Join(
            name=self.name,
            run=self._run,
            instance=self._instance,
            lease=self.lease,
            sequence=self.sequence if self.header is not None else 0,
            known_version=self.model.version if self.model is not None else 0,
            speed=self.speed,
        )
        return Send(self.server, message)

    def _be_patient(self, now: float) -> None:
        self._patience = self._config.ask_again_seconds + self._transfer_seconds
        self.ask_at = now + self._patience
