"""Drives one role with one world: the one place where effects become input and output."""

import asyncio
from collections.abc import Sequence

from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.effects import Effect, Introduce, Note, Run, Send, WakeAt
from farflung.world.errors import PeerMisbehaved
from farflung.world.role import Role


class Host:
    """A role at work under an actor name, until `stop`. Must be made on the event loop."""

    def __init__(self, role: Role, world: World, actor: str) -> None:
        self._role = role
        self._world = world
        self._actor = actor
        self._is_stopped = False
        self._wakes: dict[float, asyncio.TimerHandle] = {}
        world.network.listen(actor, self)
        self._perform(role.start(world.clock.now()))

    def stop(self) -> None:
        """Take the role off the network; results and wakes still under way are dropped."""
        self._is_stopped = True
        self._world.network.unlisten(self._actor)
        for handle in self._wakes.values():
            handle.cancel()
        self._wakes.clear()

    def deliver(self, source: Address, message: object) -> None:
        try:
            effects = self._role.receive(source, message, self._world.clock.now())
        except PeerMisbehaved as error:
            self._world.note(self._actor, str(error))
            return
        self._perform(effects)

    def lost(self, peer: PeerId, reason: str) -> None:
        self._perform(self._role.lost(peer, reason, self._world.clock.now()))

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry out effects that local code (not a message) made the role ask for."""
        self._perform(effects)

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
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

    def _submit(self, job: object, function: object, arguments: tuple[object, ...], seconds: float) -> None:
        def done(result: object) -> None:
            if not self._is_stopped:
                self._perform(self._role.finished(job, result, self._world.clock.now()))

        self._world.compute.submit(done, function, *arguments, seconds=seconds)  # pyright: ignore[reportArgumentType]

    def _wake_at(self, time: float) -> None:
        if time in self._wakes:
            return

        def wake() -> None:
            self._wakes.pop(time, None)
            if not self._is_stopped:
                self._perform(self._role.wake(self._world.clock.now()))

        delay = max(0.0, time - self._world.clock.now())
        self._wakes[time] = asyncio.get_running_loop().call_later(delay, wake)
