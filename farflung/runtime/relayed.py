"""Links through a relay: a stream whose frames are sealed for the peer and handed to the relay's own link."""

import asyncio
import contextlib
from collections.abc import Callable

from farflung.runtime.lane import StreamBroken
from farflung.runtime.link import Link
from farflung.runtime.outbox import Overflow
from farflung.wire.control import Relayed, encode_control
from farflung.wire.sealed import (
    BULK,
    CREDIT,
    ORDERED,
    RelayBody,
    SealedDecline,
    SealedFrame,
    SealedSession,
    encode_body,
)
from farflung.world.address import PeerId

WINDOW_BYTES = 4 << 20
"""Parts of large messages that may be under way through a relay: what it may have to hold, and never drop, for us."""
SEAL_BYTES = 16
"""What sealing adds: the tag of Poly1305."""


class Through:
    """The way to one peer through one relay's link."""

    def __init__(self, link: Link, me: PeerId, peer: PeerId) -> None:
        self.link = link
        self.peer = peer
        self._me = me

    def send(self, body: RelayBody, *, is_bulk: bool = False) -> None:
        """Hand a body to the relay. Raises StreamBroken when the way is gone or full."""
        frame = self._wrap(body, is_bulk)
        if not self.link.is_open:
            raise StreamBroken("the relay was lost")
        try:
            self.link.pass_on(frame)
        except Overflow:
            raise StreamBroken("too much waits for the relay") from None

    def overhead_bytes(self, session: bytes) -> int:
        """What sealing and wrapping a frame adds to it on the wire, give or take the digits of its number."""
        empty = SealedFrame(session=session, lane=ORDERED, sequence=1 << 16, sealed=memoryview(bytes(SEAL_BYTES)))
        return len(encode_control(self._wrap(empty, False)))

    def _wrap(self, body: RelayBody, is_bulk: bool) -> Relayed:
        data = memoryview(encode_body(body))
        return Relayed(source=self._me, destination=self.peer, is_bulk=is_bulk, data=data)


class RelayedSession:
    """An agreed session at work: two streams, one for each kind of lane, and the credit that bounds the second."""

    def __init__(self, through: Through, sealed: SealedSession, on_close: Callable[[], object]) -> None:
        self.through = through
        self.sealed = sealed
        self.urgent = RelayedStream(self, ORDERED)
        self.bulk = RelayedStream(self, BULK)
        self.overhead_bytes = through.overhead_bytes(sealed.session)
        self._on_close = on_close
        self._came: asyncio.Queue[bytes | str] = asyncio.Queue()
        self._credit = WINDOW_BYTES
        self._num_bytes_owed = 0
        self._credit_came = asyncio.Event()
        self.is_closed = False

    def take(self, frame: SealedFrame) -> None:
        """A sealed frame came. Raises BadSeal."""
        content = self.sealed.open(frame)
        if frame.lane == CREDIT:
            self._credit += int.from_bytes(content, "big")
            self._credit_came.set()
            return
        self._came.put_nowait(content)
        if frame.lane == BULK:
            self._acknowledge(len(content))

    def end(self, reason: str) -> None:
        """The way is gone."""
        self.is_closed = True
        self._came.put_nowait(reason)
        self._credit_came.set()

    async def read(self) -> bytes:
        """The next frame of either lane."""
        content = await self._came.get()
        if isinstance(content, str):
            raise StreamBroken(content)
        return content

    async def write(self, lane: int, frame: bytes) -> None:
        """Seal and send, on the bulk lane as soon as there is credit."""
        if lane == BULK:
            while self._credit < len(frame) and not self.is_closed:
                self._credit_came.clear()
                await self._credit_came.wait()
            self._credit -= len(frame)
        if self.is_closed:
            raise StreamBroken("the session through the relay is closed")
        self.through.send(self.sealed.seal(lane, frame), is_bulk=lane == BULK)

    def close(self) -> None:
        """Tell the other side."""
        if not self.is_closed:
            self.end("closed here")
            with contextlib.suppress(StreamBroken):
                self.through.send(SealedDecline(session=self.sealed.session, reason="it closed the session"))
        self._on_close()

    def _acknowledge(self, num_bytes: int) -> None:
        self._num_bytes_owed += num_bytes
        if self._num_bytes_owed >= WINDOW_BYTES // 4:
            owed, self._num_bytes_owed = self._num_bytes_owed, 0
            self.through.send(self.sealed.seal(CREDIT, owed.to_bytes(8, "big")))


class RelayedStream:
    """One of a session's two streams; implements `lane.Stream`. What comes, comes by the urgent one."""

    def __init__(self, session: RelayedSession, lane: int) -> None:
        self._session = session
        self._lane = lane
        self._closed = asyncio.Event()

    async def read(self) -> bytes | None:
        if self._lane == BULK:
            await self._closed.wait()
            return None
        return await self._session.read()

    async def write(self, frame: bytes) -> None:
        await self._session.write(self._lane, frame)

    def close(self) -> None:
        self._closed.set()
        if self._lane == ORDERED:
            self._session.close()
