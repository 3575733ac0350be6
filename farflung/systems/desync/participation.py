"""One member's part in one round, from its arrival to the outcome, as a state machine (no I/O).

arriving --SyncForm--> exchanging --all means--> ready --SyncCommit--> committed
    ^                      |                       |
    '------ SyncAbort, or a newer SyncForm --------'        a member whose state is old becomes stale instead

Whatever is lost is asked for again: decisions from the coordinator, parts from whom they should have come.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from farflung.learn.codecs import SIGNED_CODECS
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.exchange import Exchange, Handed, Section
from farflung.systems.desync.messages import (
    Assignment,
    Dealt,
    SyncAbort,
    SyncArrive,
    SyncCommit,
    SyncForm,
    SyncJoin,
    SyncPart,
    SyncPartAsk,
    SyncReady,
    SyncStuck,
    SyncUnknown,
    SyncWelcome,
)
from farflung.systems.desync.plan import plan_parts, sections_of
from farflung.systems.desync.snapshots import Snapshot
from farflung.wire.message import Message
from farflung.world.address import Address, PeerId
from farflung.world.effects import Send
from farflung.world.errors import PeerMisbehaved

EARLY_PARTS_MAX = 4096
"""Parts of an exchange that one has not heard of yet are kept up to this number."""
PARTS_ASKED_MAX = 64
"""Of one member, at once."""
PATIENCE_FACTOR = 3.0
"""Ask again after so many times the longest wait for a part so far."""
PATIENCE_DOUBLINGS_MAX = 5


@dataclass(frozen=True, slots=True)
class Committed:
    """The exchange counts."""

    exchange: int
    assignment: Assignment
    dealt: Dealt
    mean: torch.Tensor
    """[length], with the same bits at every member."""
    residual: torch.Tensor
    sections: Sequence[Section]
    members: Sequence[Address]
    snapshot: Snapshot

    @property
    def landing(self) -> tuple[Sequence[Section], torch.Tensor, torch.Tensor, Snapshot, Assignment]:
        """What `Replica.land` takes."""
        return self.sections, self.mean, self.residual, self.snapshot, self.assignment


@dataclass(frozen=True, slots=True)
class Stale:
    """The run went on without this member, or its data were given to others: it needs the state of another, or may go
    on if `donor` is None."""

    assignment: Assignment
    donor: Address | None
    dealt: Dealt


class Participation:
    """See the module's docstring. `outcome` is set at its end."""

    def __init__(
        self,
        config: DesyncConfig,
        me: Address,
        coordinator: Address,
        join: SyncJoin,
        arrive: SyncArrive,
        lengths: Mapping[str, int],
        snapshot: Snapshot,
        *,
        longest_wait_seconds: float = 0.0,
    ) -> None:
        self._config = config
        self._me = me
        self._coordinator = coordinator
        self._join = join
        self._arrive = arrive
        self._sections = sections_of(lengths, snapshot.due, config)
        self._snapshot = snapshot
        self.outcome: Committed | Stale | None = None
        self._form: SyncForm | None = None
        self._newest = 0
        """Number of the last exchange it was told to take part in."""
        self._exchange: Exchange | None = None
        self._early: list[tuple[Address, SyncPart]] = []
        self.longest_wait_seconds = longest_wait_seconds
        self._num_waits = 0
        self._progress_at = 0.0
        self._coordinator_at = 0.0
        self.wake_at = 0.0

    def start(self, now: float) -> list[Send]:
        """Arrive."""
        self._progress_at = now
        return self._ask_coordinator(now)

    def receive(self, source: Address, message: object, now: float) -> list[Send]:
        """Any message that may concern the round.

        Raises:
            PeerMisbehaved: it is none that an honest member sends.
        """
        if self.outcome is not None:
            return []
        match message:
            case SyncPart():
                return self._part(source, message, now)
            case SyncPartAsk():
                return self._hand_again(source, message)
            case _ if source == self._coordinator:
                return self._told(message, now)
            case _:
                return []

    def lost(self, peer: PeerId, now: float) -> list[Send]:
        """The way to a peer broke: if it takes part, the coordinator must know."""
        if peer == self._coordinator.peer:
            return self._ask_coordinator(now)
        if self._form is None or self._exchange is None or self._exchange.is_done:
            return []
        stuck = [seat.address for seat in self._form.seats if seat.address.peer == peer]
        return [Send(self._coordinator, SyncStuck(exchange=self._form.exchange, member=one)) for one in stuck]

    def wake(self, now: float) -> list[Send]:
        """Ask again for what has not come."""
        sends: list[Send] = []
        if now >= self._coordinator_at + self._config.rounds.ask_again_seconds:
            sends += self._ask_coordinator(now)
        if self._exchange is not None and self._form is not None and now >= self._progress_at + self._patience:
            self._num_waits = min(self._num_waits + 1, PATIENCE_DOUBLINGS_MAX)
            self._progress_at = now
            for seat, wanted in self._exchange.missing().items():
                ask = SyncPartAsk(exchange=self._form.exchange, wanted=wanted[:PARTS_ASKED_MAX])
                sends.append(Send(self._form.seats[seat].address, ask))
        self._set_wake()
        return sends

    @property
    def _patience(self) -> float:
        # Large parts on a slow link must not be asked for while they are on their way.
        seconds = max(self._config.rounds.ask_again_seconds, PATIENCE_FACTOR * self.longest_wait_seconds)
        return seconds * 2**self._num_waits

    def _set_wake(self) -> None:
        self.wake_at = self._coordinator_at + self._config.rounds.ask_again_seconds
        if self._exchange is not None and not self._exchange.is_done:
            self.wake_at = min(self.wake_at, self._progress_at + self._patience)

    # With the coordinator

    def _ask_coordinator(self, now: float) -> list[Send]:
        self._coordinator_at = now
        self._set_wake()
        question: Message = self._arrive
        if self._form is not None and self._exchange is not None and self._exchange.is_done:
            question = SyncReady(exchange=self._form.exchange)
        return [Send(self._coordinator, question)]

    def _told(self, message: object, now: float) -> list[Send]:
        match message:
            case SyncForm() if message.exchange > self._newest and message.round == self._arrive.round:
                return self._begin(message, now)
            case SyncCommit() if message.exchange == self._newest:
                assert self._exchange is not None and self._exchange.is_done, "committed without having been ready"
                self.outcome = Committed(
                    exchange=self._newest,
                    assignment=message.assignment,
                    dealt=message.dealt,
                    mean=self._exchange.mean,
                    residual=self._exchange.residual,
                    sections=self._sections,
                    members=[] if self._form is None else [one.address for one in self._form.seats],
                    snapshot=self._snapshot,
                )
            case SyncAbort() if message.exchange == self._newest and self._form is not None:
                self._form = self._exchange = None
                return self._ask_coordinator(now)
            case SyncUnknown():
                return [Send(self._coordinator, self._join)]
            case SyncWelcome(assignment=assignment, donor=donor, dealt=dealt):
                is_void = self._arrive.deal < dealt.since
                if assignment.round != self._arrive.round or not assignment.due or is_void:
                    self.outcome = Stale(assignment, donor, dealt)
                elif self._exchange is None:
                    return self._ask_coordinator(now)
            case _:
                pass
        return []

    # With the other members

    def _begin(self, form: SyncForm, now: float) -> list[Send]:
        seat = next((number for number, one in enumerate(form.seats) if one.address == self._me), None)
        are_codecs_known = all(one.codec in SIGNED_CODECS for one in form.codecs)
        if seat is None or form.due != self._snapshot.due or not are_codecs_known:
            raise PeerMisbehaved(self._coordinator.peer, "formed a round that is not the one it had announced")
        parts = plan_parts(form.seats, self._sections, self._config)
        self._form, self._newest = form, form.exchange
        snapshot = self._snapshot
        self._exchange = Exchange(
            form.seats, seat, self._sections, parts, snapshot.values, snapshot.residual, form.codecs
        )
        self._num_waits, self._progress_at = 0, now
        sends = self._outgoing(self._exchange.start(), now)
        early, self._early = self._early, []
        for source, part in early:
            sends += self._part(source, part, now)
        self._set_wake()
        return sends

    def _part(self, source: Address, part: SyncPart, now: float) -> list[Send]:
        if part.exchange > self._newest and len(self._early) < EARLY_PARTS_MAX:
            self._early.append((source, part))
        seat = self._seat_of(source)
        if part.exchange != self._newest or self._exchange is None or self._exchange.is_done or seat is None:
            return []
        handed = self._exchange.receive(seat, part.index, part.is_mean, part.tensor)
        self.longest_wait_seconds = max(self.longest_wait_seconds, now - self._progress_at)
        self._num_waits, self._progress_at = 0, now
        return self._outgoing(handed, now)

    def _seat_of(self, source: Address) -> int | None:
        seats = () if self._form is None else self._form.seats
        return next((number for number, one in enumerate(seats) if one.address == source), None)

    def _outgoing(self, handed: Sequence[Handed], now: float) -> list[Send]:
        assert self._form is not None and self._exchange is not None
        sends = [
            Send(
                self._form.seats[one.seat].address,
                SyncPart(exchange=self._form.exchange, index=one.index, is_mean=one.is_mean, tensor=one.tensor),
            )
            for one in handed
        ]
        return sends + self._ask_coordinator(now) if self._exchange.is_done else sends

    def _hand_again(self, source: Address, message: SyncPartAsk) -> list[Send]:
        if self._form is None or self._exchange is None:
            return []
        seat = self._seat_of(source)
        if message.exchange != self._form.exchange or seat is None:
            return []
        return [
            Send(source, SyncPart(exchange=message.exchange, index=one.index, is_mean=one.is_mean, tensor=one.tensor))
            for one in self._exchange.again(seat, message.wanted)
        ]
