"""What a node keeps about one peer: how to reach it, what waits for it, and the one link to it, whoever dialled.

When both dial at once, the call of the peer with the smaller id wins: the smaller side holds the other's Hello until
its own has been answered, and the larger side answers at once. A side that has said Welcome sends no Hello before it
is settled. So at most one of two crossing calls gets to Ready, and no link that has carried a message is given up.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Protocol

from farflung.runtime.lane import StreamBroken
from farflung.runtime.limits import NetworkLimits
from farflung.runtime.link import Link
from farflung.world.address import PeerId
from farflung.world.doors import Contact


class PeeringOwner(Protocol):
    """The network, as its peerings see it."""

    async def dial(self, peering: "Peering", contact: Contact) -> None:
        """Call the peer by any way there is; ends with `peering.link` set. Raises StreamBroken."""
        ...

    def gone(self, link: Link) -> None:
        """A link is closed: what went through it to further peers is over."""
        ...

    def tell_lost(self, peer: PeerId, reason: str) -> None:
        """Tell every local actor, soon."""
        ...


class Peering:
    """One peer, for as long as this node has anything to do with it."""

    def __init__(self, peer: PeerId, owner: PeeringOwner, limits: NetworkLimits, stream: random.Random) -> None:
        """`stream`: randomness that keeps many nodes from dialling in step."""
        self.peer = peer
        self.link: Link | None = None
        self.is_kept = False
        self.refused_until = 0.0
        self.num_streams = 0
        self._hello_out: asyncio.Future[None] | None = None
        self._accepting: asyncio.Future[None] | None = None
        self._contact: Contact | None = None
        self._owner = owner
        self._limits = limits
        self._random = stream
        self._waiting: deque[tuple[bytes, str]] = deque()
        self._num_bytes_waiting = 0
        self._calling: asyncio.Task[None] | None = None
        self._changed: asyncio.Event = asyncio.Event()
        self._num_failures = 0
        self._not_before = 0.0

    def introduce(self, contact: Contact) -> None:
        """Replace what was known about where the peer is; a new address is worth trying at once."""
        if contact != self._contact:
            self._contact = contact
            self._num_failures, self._not_before = 0, 0.0
            self._changed.set()

    def keep(self, is_kept: bool) -> None:
        """Hold a link open, and reopen it, even while there is nothing to send."""
        self.is_kept = is_kept
        if is_kept:
            self.call()

    def send(self, pieces: Sequence[bytes | memoryview], kind: str) -> None:
        """Send an envelope, given in pieces, over the link, or queue it and call."""
        if self.link is not None:
            self.link.send(pieces, kind)
            return
        frame = b"".join(pieces)
        if self._num_bytes_waiting + len(frame) > self._limits.bulk_queue_bytes_max:
            self.fail("more messages wait for it than may")
            return
        self._waiting.append((frame, kind))
        self._num_bytes_waiting += len(frame)
        self.call()

    def adopt(self, link: Link) -> None:
        """Take an open link, whoever called, and send what waits."""
        old, self.link = self.link, link
        if old is not None:
            old.drop()
            self._owner.gone(old)
            self._owner.tell_lost(self.peer, "it connected anew")
        self._num_failures, self._not_before = 0, 0.0
        if self._calling is not None and self._calling is not asyncio.current_task():
            self._calling.cancel()
            self._calling = None
        self._changed.set()
        waiting, self._waiting, self._num_bytes_waiting = self._waiting, deque(), 0
        for frame, kind in waiting:
            link.send([frame], kind)

    def ended(self, link: Link, reason: str) -> None:
        """The link is gone."""
        if self.link is link:
            self.link = None
            self._owner.tell_lost(self.peer, reason)
            if self.is_kept:
                self.call()

    @contextlib.asynccontextmanager
    async def calling(self) -> AsyncIterator[bool]:
        """Around our Hello and its answer; False, and no Hello may be sent, if a link has come about meanwhile."""
        while (settling := self._accepting or self._hello_out) is not None:
            await asyncio.wait([settling])
        if self.link is not None:
            yield False
            return
        self._hello_out = settled = asyncio.get_running_loop().create_future()
        try:
            yield True
        finally:
            settled.set_result(None)
            self._hello_out = None

    @contextlib.asynccontextmanager
    async def answering(self, me: PeerId) -> AsyncIterator[bool]:
        """Around our Welcome and the Ready after it; False, and no Welcome may be sent, if our own call came first."""
        if self._hello_out is not None and me < self.peer:
            await asyncio.wait([self._hello_out])
            if self.link is not None:
                yield False
                return
        while self._accepting is not None:
            await asyncio.wait([self._accepting])
        self._accepting = settled = asyncio.get_running_loop().create_future()
        try:
            yield True
        finally:
            settled.set_result(None)
            self._accepting = None

    async def linked(self, seconds: float) -> bool:
        """Wait for a link, whoever calls; False when the time is over first."""
        return await self._until(lambda: self.link is not None, seconds)

    async def linked_unless(self, refusal: Coroutine[Any, Any, object]) -> None:
        """Wait for a link, or for `refusal` to end, with an answer or an error of its own; the error is raised."""
        task = asyncio.create_task(refusal)
        task.add_done_callback(lambda _: self._changed.set())
        try:
            while self.link is None and not task.done():
                self._changed.clear()
                await self._changed.wait()
            if task.done():
                await task
        finally:
            task.cancel()

    def fail(self, reason: str) -> None:
        """Give up what waits for the peer."""
        if self._waiting:
            self._waiting.clear()
            self._num_bytes_waiting = 0
            self._owner.tell_lost(self.peer, reason)

    def stop(self) -> None:
        """No more calls."""
        self.is_kept = False
        if self._calling is not None:
            self._calling.cancel()

    @property
    def is_idle(self) -> bool:
        """Nothing is kept, waiting or under way: the peer may be forgotten but for its contact."""
        return self.link is None and not self._waiting and not self.is_kept and self._calling is None

    def call(self) -> None:
        """Begin to call the peer unless a link is open or a call under way."""
        if self.link is None and (self._calling is None or self._calling.done()):
            self._calling = asyncio.get_running_loop().create_task(self._call_until_linked())

    async def _call_until_linked(self) -> None:
        try:
            while self.link is None:
                try:
                    await self._attempt()
                except StreamBroken as error:
                    self._back_off()
                    self.fail(str(error))
                    if not self.is_kept:
                        return
        finally:
            if self._calling is asyncio.current_task():
                self._calling = None

    async def _attempt(self) -> None:
        now = asyncio.get_running_loop().time
        await self._until(lambda: self.link is not None or now() >= self._not_before, self._not_before - now())
        if not self._is_reachable() and not await self._until(self._is_reachable, self._limits.contact_seconds_max):
            known = "no address of it is known" if self._contact is None else "it cannot be called"
            raise StreamBroken(f"{known}, and it has not called")
        if self.link is None and self._contact is not None:
            await self._owner.dial(self, self._contact)

    def _is_reachable(self) -> bool:
        contact = self._contact
        return self.link is not None or (contact is not None and bool(contact.endpoints or contact.relays))

    def _back_off(self) -> None:
        pause = min(self._limits.backoff_seconds_max, self._limits.backoff_seconds_min * 2**self._num_failures)
        self._num_failures = min(self._num_failures + 1, 30)
        self._not_before = asyncio.get_running_loop().time() + pause * self._random.uniform(0.5, 1.0)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait for a condition that `_changed` announces; False when the time is over first."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            self._changed.clear()
            remaining = deadline - asyncio.get_running_loop().time()
            if remaining <= 0:
                return False
            try:
                await asyncio.wait_for(self._changed.wait(), remaining)
            except TimeoutError:
                return False
        return True
