"""The clock door on real machines."""

import asyncio
import time


class LoopClock:
    """The event loop's monotonic time, and the machine's wall clock."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now(self) -> float:
        return self._loop.time()

    def wall_seconds(self) -> float:
        return time.time()
