"""Frames that wait for a lane to write them, in order and within a limit."""

import asyncio
from collections import deque


class Overflow(Exception):
    """More waits than may."""


class Outbox:
    """A queue of frames that one lane empties."""

    def __init__(self, num_bytes_max: int) -> None:
        self.num_bytes = 0
        self._frames: deque[bytes] = deque()
        self._num_bytes_max = num_bytes_max
        self._waiter: asyncio.Future[None] | None = None

    def put(self, frame: bytes) -> None:
        """Add a frame and wake the lane.

        Raises:
            Overflow: the limit is passed; the frame was not added.
        """
        if self.num_bytes + len(frame) > self._num_bytes_max:
            raise Overflow(f"{self.num_bytes} bytes already wait for it")
        self._frames.append(frame)
        self.num_bytes += len(frame)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> bytes:
        """The oldest frame, as soon as there is one."""
        while not self._frames:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        frame = self._frames.popleft()
        self.num_bytes -= len(frame)
        return frame
