"""A lane: one ordered stream of frames to a peer, with a task that writes what waits and one that reads what comes."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol


class StreamBroken(Exception):
    """The stream ended against our will; the text says how."""


class Stream(Protocol):
    """Frames to and from a peer: gRPC, whichever side dialled, or sealed frames through a relay."""

    async def read(self) -> bytes | None:
        """The next frame; None when the other side has ended the stream."""
        ...

    async def write(self, frame: bytes) -> None:
        """Returns when the stream can take the next frame."""
        ...

    def close(self) -> None:
        """Give the stream up. Harmless when repeated."""
        ...


class Source(Protocol):
    """Where a lane takes the frames from that it writes."""

    async def take(self) -> bytes: ...


class Lane:
    """A stream at work. Made and closed on the event loop."""

    def __init__(
        self, stream: Stream, source: Source, on_frame: Callable[[bytes], None], on_end: Callable[["Lane", str], None]
    ) -> None:
        self._stream = stream
        self._source = source
        self._on_frame = on_frame
        self._on_end = on_end
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._guard(work)) for work in (self._read, self._write)]

    def close(self) -> None:
        """Stop both tasks and give up the stream; `on_end` is not called."""
        if self.closed.done():
            return
        self.closed.set_result(None)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._stream.close()

    def end(self, reason: str) -> None:
        """Close because of what happened outside, and tell `on_end`, unless closed already."""
        if not self.closed.done():
            self.close()
            self._on_end(self, reason)

    async def _read(self) -> str:
        while (frame := await self._stream.read()) is not None:
            self._on_frame(frame)
            if self.closed.done():
                return ""
        return "the peer ended the stream"

    async def _write(self) -> str:
        while True:
            await self._stream.write(await self._source.take())

    async def _guard(self, work: Callable[[], object]) -> None:
        reason = ""
        with contextlib.suppress(asyncio.CancelledError):
            try:
                reason = await work()  # type: ignore[misc]
            except StreamBroken as error:
                reason = str(error)
        self.end(reason)
