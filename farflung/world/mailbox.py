"""A mailbox: how a loop (a sequence of questions) takes part among actors; and `call`, one question with a deadline."""

import asyncio
from dataclasses import dataclass

from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.errors import Unreachable

MESSAGES_WAITING_MAX = 10_000
"""More than this can only come from a peer that floods; what is over is dropped."""


@dataclass(frozen=True, slots=True)
class PeerLost:
    """Stands in a mailbox for a peer whose link broke."""

    peer: PeerId
    reason: str


class Mailbox:
    """An actor whose messages wait until a loop asks for them. Close it when the loop ends (`with`)."""

    def __init__(self, world: World, actor: str) -> None:
        self._world = world
        self.actor = actor
        self._waiting: asyncio.Queue[tuple[Address, object]] = asyncio.Queue()
        world.network.listen(actor, self)

    def __enter__(self) -> "Mailbox":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def address(self) -> Address:
        """Where others write to this mailbox."""
        return Address(self._world.network.peer, self.actor)

    def close(self) -> None:
        """Stop receiving; what is still waiting is dropped."""
        self._world.network.unlisten(self.actor)

    def clear(self) -> None:
        """Drop what is waiting."""
        while not self._waiting.empty():
            self._waiting.get_nowait()

    def deliver(self, source: Address, message: object) -> None:
        """Keep a message until it is asked for."""
        if self._waiting.qsize() >= MESSAGES_WAITING_MAX:
            self._world.note(self.actor, f"dropped a message of {source}: {MESSAGES_WAITING_MAX} are waiting")
            return
        self._waiting.put_nowait((source, message))

    def lost(self, peer: PeerId, reason: str) -> None:
        """Keep, among the messages, that the way to a peer broke."""
        self._waiting.put_nowait((Address(peer, ""), PeerLost(peer, reason)))

    def send(self, destination: Address, message: object) -> None:
        """Send in this mailbox's name; answers come back to it."""
        self._world.network.send(self.actor, destination, message)

    async def receive(self, deadline: float) -> tuple[Address, object] | None:
        """The next message with its source; None once the monotonic clock passes `deadline`.

        A broken link appears as a `PeerLost` message from Address(peer, "").
        """
        if not self._waiting.empty():
            return self._waiting.get_nowait()
        seconds = deadline - self._world.clock.now()
        if seconds <= 0:
            return None
        try:
            # Not wait_for, which makes a task of its own for every message in Python 3.11.
            async with asyncio.timeout(seconds):
                return await self._waiting.get()
        except TimeoutError:
            return None


async def call(mailbox: Mailbox, destination: Address, message: object, deadline: float) -> object:
    """Send one message and return the first answer from its destination that comes after it.

    The mailbox is for this question alone: what waited in it is dropped, what others send meanwhile is too. A question
    asked again can be answered by a late answer to the first; where that matters, messages carry numbers.

    Raises:
        Unreachable: the peer was lost, or nothing came before the deadline.
    """
    mailbox.clear()
    mailbox.send(destination, message)
    while (received := await mailbox.receive(deadline)) is not None:
        source, answer = received
        if source.peer != destination.peer:
            continue
        if isinstance(answer, PeerLost):
            raise Unreachable(destination.peer, answer.reason)
        if source.actor == destination.actor:
            return answer
    raise Unreachable(destination.peer, "no answer before the deadline")
