"""A mailbox: how a loop (a sequence of questions) takes part among actors; and `call`, one question with a deadline."""

import asyncio
from dataclasses import dataclass

from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.errors import Unreachable


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

    def deliver(self, source: Address, message: object) -> None:
        self._waiting.put_nowait((source, message))

    def lost(self, peer: PeerId, reason: str) -> None:
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
            return await asyncio.wait_for(self._waiting.get(), seconds)
        except TimeoutError:
            return None


async def call(mailbox: Mailbox, destination: Address, message: object, deadline: float) -> object:
    """Send one message and return the first answer from its destination.

    Raises:
        Unreachable: the peer was lost, or nothing came before the deadline.
    """
    mailbox.send(destination, message)
    while (received := await mailbox.receive(deadline)) is not None:
        source, answer = received
        if source.peer != destination.peer:
            continue
        if isinstance(answer, PeerLost):
            raise Unreachable(destination.peer, answer.reason)
        return answer
    raise Unreachable(destination.peer, "no answer before the deadline")
