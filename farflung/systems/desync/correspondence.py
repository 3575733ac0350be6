"""A worker's ear and hands: one mailbox for the coordinator, the others, newcomers and the own device.

The worker waits for one condition at a time (`until`); whatever comes meanwhile is answered here, so that a round goes
on and a newcomer is served while local steps run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.giving import Donor, Fetch
from farflung.systems.desync.messages import SyncFarewell, SyncStateAsk, SyncStatePartAsk, SyncWelcome
from farflung.systems.desync.participation import Participation
from farflung.systems.desync.replica import Replica
from farflung.systems.desync.snapshots import ReplicaState
from farflung.wire.message import NoSuchActor, Refusal
from farflung.world.address import Address
from farflung.world.doors import Failed, World
from farflung.world.effects import Send
from farflung.world.errors import PeerMisbehaved, Refused
from farflung.world.mailbox import Mailbox, PeerLost

Result = TypeVar("Result")
NEVER_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Computed:
    """A job of the device is done."""

    job: int
    result: object


@dataclass(frozen=True, slots=True)
class Woken:
    """Something that a condition depends on has changed."""


@dataclass(frozen=True, slots=True)
class Copied:
    """The state that a newcomer asked for."""

    newcomer: Address
    state: object


class Correspondence:
    """Everything that a worker hears and says."""

    def __init__(
        self, world: World, mailbox: Mailbox, coordinator: Address, replica: Replica, config: DesyncConfig
    ) -> None:
        self._world = world
        self._mailbox = mailbox
        self._coordinator = coordinator
        self._replica = replica
        # With overlap, outcomes land on the event loop, and what is agreed on must be copied there.
        self._is_overlapped = config.is_overlapped
        self._donor = Donor(config.part_values_max)
        self._results: dict[int, object] = {}
        self._num_jobs = 0
        self.participation: Participation | None = None
        self.fetch: Fetch | None = None
        self.welcome: SyncWelcome | None = None
        """The newest."""
        self.has_farewell = False
        self.is_coordinator_lost = False
        """Whether the way to it broke and nothing has come from it since."""
        self.busy_seconds = 0.0
        """In which the device worked for this worker."""

    @property
    def address(self) -> Address:
        """Where others write to this worker."""
        return self._mailbox.address

    def send(self, sends: Sequence[Send]) -> None:
        """Say something."""
        for send in sends:
            self._mailbox.send(send.destination, send.message)

    def wake(self) -> None:
        """Let whoever waits look at its condition again."""
        self._mailbox.deliver(self.address, Woken())

    def begin(self, function: Callable[..., object], *arguments: object, seconds: float) -> int:
        """Run something on the device; returns the number of the job."""
        self._num_jobs += 1
        job = self._num_jobs
        self._world.compute.submit(
            lambda result: self._mailbox.deliver(self.address, Computed(job, result)),
            function,
            *arguments,
            seconds=seconds,
        )
        return job

    def is_done(self, job: int) -> bool:
        """Whether the result of a job is here."""
        return job in self._results

    def take(self, job: int, seconds: float) -> Any:
        """The result of a job that kept the device busy for `seconds`.

        Raises:
            Exception: what the job raised.
        """
        self.busy_seconds += seconds
        result = self._results.pop(job)
        if isinstance(result, Failed):
            raise result.error
        return result

    async def compute(self, function: Callable[..., Result], *arguments: object, seconds: float) -> Result:
        """Run something on the device, and answer others meanwhile.

        Raises:
            Exception: what `function` raised.
        """
        began = self._world.clock.now()
        job = self.begin(function, *arguments, seconds=seconds)
        await self.until(lambda: self.is_done(job))
        return self.take(job, self._world.clock.now() - began)

    async def until(self, condition: Callable[[], bool], *, deadline: float | None = None) -> bool:
        """Answer whatever comes until `condition()` holds; False if the deadline passes first."""
        while not condition():
            now = self._world.clock.now()
            if deadline is not None and now >= deadline:
                return False
            wake_at = self._wake_at(now + NEVER_SECONDS)
            received = await self._mailbox.receive(wake_at if deadline is None else min(wake_at, deadline))
            if received is not None:
                self._hear(*received)
            elif self.participation is not None and self._world.clock.now() >= self.participation.wake_at:
                self.send(self.participation.wake(self._world.clock.now()))
        return True

    async def ask_until(
        self, question: Sequence[Send], condition: Callable[[], bool], ask_again_seconds: float
    ) -> None:
        """Say something again and again until `condition()` holds."""
        while not condition():
            self.send(question)
            await self.until(condition, deadline=self._world.clock.now() + ask_again_seconds)

    def _wake_at(self, otherwise: float) -> float:
        is_waiting = self.participation is not None and self.participation.outcome is None
        return self.participation.wake_at if is_waiting and self.participation is not None else otherwise

    def _hear(self, source: Address, message: object) -> None:
        now = self._world.clock.now()
        if source.peer == self._coordinator.peer:
            self.is_coordinator_lost = isinstance(message, PeerLost)
        try:
            match message:
                case Computed(job, result):
                    self._results[job] = result
                case Copied(newcomer, state):
                    self._give(newcomer, state)
                case SyncStateAsk():
                    self._copy_for(source)
                case SyncStatePartAsk():
                    part = self._donor.part(message)
                    self.send([] if part is None else [Send(source, part)])
                case PeerLost(peer, _):
                    self.send([] if self.participation is None else self.participation.lost(peer, now))
                case Refusal(reason=reason) if source == self._coordinator:
                    raise Refused(source.peer, reason)
                case NoSuchActor() | Woken():
                    pass
                case _:
                    self._hear_of_run(source, message, now)
        except PeerMisbehaved as error:
            self._world.note(self._mailbox.actor, str(error))

    def _hear_of_run(self, source: Address, message: object, now: float) -> None:
        if isinstance(message, SyncWelcome) and source == self._coordinator:
            self.welcome = message
        if isinstance(message, SyncFarewell) and source == self._coordinator:
            self.has_farewell = True
        if self.fetch is not None:
            self.send(self.fetch.receive(source, message))
        if self.participation is not None:
            self.send(self.participation.receive(source, message, now))

    def _copy_for(self, newcomer: Address) -> None:
        self._world.compute.submit(
            lambda result: self._mailbox.deliver(self.address, Copied(newcomer, result)),
            self._replica.with_moments,
            self._replica.copy_agreed() if self._is_overlapped else None,
            seconds=0.0,
        )

    def _give(self, newcomer: Address, state: object) -> None:
        if isinstance(state, Failed):
            raise state.error
        assert isinstance(state, ReplicaState)
        self.send([Send(newcomer, self._donor.offer(state))])
