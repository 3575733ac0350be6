"""Drives one role with one world: the one place where effects become input and output."""

import asyncio
from collections.abc import Callable, Sequence

from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.effects import (
    Append,
    Delete,
    Drop,
    Effect,
    Introduce,
    Load,
    Note,
    Run,
    Save,
    Send,
    WakeAt,
)
from farflung.world.errors import PeerMisbehaved
from farflung.world.role import Role


class Host:
    """A role at work under an actor name, until `stop`. Must be made on the event loop."""

    def __init__(
        self, role: Role, world: World, actor: str, on_failure: Callable[[OSError], object] = lambda error: None
    ) -> None:
        """`on_failure`: called once if the disk fails, which ends the role."""
        self._on_failure = on_failure
        self._role = role
        self._world = world
        self._actor = actor
        self._is_stopped = False
        self._wakes: dict[float, asyncio.TimerHandle] = {}
        world.network.listen(actor, self)
        self.perform(role.start(world.clock.now()))

    def stop(self) -> None:
        """Take the role off the network; results and wakes still under way are dropped."""
        self._is_stopped = True
        self._world.network.unlisten(self._actor)
        for handle in self._wakes.values():
            handle.cancel()
        self._wakes.clear()

    def deliver(self, source: Address, message: object) -> None:
        """Hand a message to the role; a peer that broke the protocol is named in the log and otherwise ignored."""
        if self._is_stopped:
            return
        try:
            effects = self._role.receive(source, message, self._world.clock.now())
        except PeerMisbehaved as error:
            self._world.note(self._actor, str(error))
            return
        self.perform(effects)

    def lost(self, peer: PeerId, reason: str) -> None:
        """Tell the role that the way to a peer broke."""
        if not self._is_stopped:
            self.perform(self._role.lost(peer, reason, self._world.clock.now()))

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry out effects, in order: those of a handler, or those that local code made the role ask for.

        A disk that does not take what is to be kept stops the role there: nothing is sent that is not durable.
        """
        try:
            self._perform_all(effects)
        except OSError as error:
            self._world.note(self._actor, f"stops, because the disk fails: {error}")
            self.stop()
            self._on_failure(error)

    def _perform_all(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(destination, message):
                self._world.network.send(self._actor, destination, message)
            case Run(job, function, arguments, seconds):
                self._submit(job, function, arguments, seconds)
            case WakeAt(time):
                self._wake_at(time)
            case Note(sentence):
                self._world.note(self._actor, sentence)
            case Introduce(peer, contact):
                self._world.network.introduce(peer, contact)
            case _:
                self._keep(effect)

    def _keep(self, effect: Save | Load | Delete | Append | Drop) -> None:
        """Effects on what survives a crash."""
        match effect:
            case Save(key, value):
                self._world.store.write(key, value)
            case Delete(key):
                self._world.store.delete(key)
            case Append(name, record):
                journal = self._world.journal(name)
                journal.append(record)
                journal.sync()
            case Drop(name, num_records):
                self._world.journal(name).drop(num_records)
            case Load(job, key):
                value = self._world.store.read(key)
                if not self._is_stopped:
                    self._perform_all(self._role.finished(job, value, self._world.clock.now()))

    def _submit(
        self, job: object, function: Callable[..., object], arguments: tuple[object, ...], seconds: float
    ) -> None:
        def done(result: object) -> None:
            if not self._is_stopped:
                self.perform(self._role.finished(job, result, self._world.clock.now()))

        self._world.compute.submit(done, function, *arguments, seconds=seconds)

    def _wake_at(self, time: float) -> None:
        if self._is_stopped or time in self._wakes:
            return

        def wake() -> None:
            self._wakes.pop(time, None)
            self.perform(self._role.wake(self._world.clock.now()))

        # Clock.now() is the loop's time in both worlds, so the moment itself can be given, without rounding a delay.
        self._wakes[time] = asyncio.get_running_loop().call_at(time, wake)
