"""A virtual device: it computes for real and charges virtual seconds, one job at a time."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from farflung.sim.process import Process
from farflung.world.doors import Failed


@dataclass(slots=True)
class Speed:
    """How slow a node is; outlives its restarts."""

    slowness: float = 1.0
    """Each job takes this many times the seconds it says."""


@dataclass(frozen=True, slots=True)
class _Job:
    done: Callable[[object], None]
    function: Callable[..., object]
    arguments: tuple[object, ...]
    seconds: float


class VirtualDevice:
    """The compute door of one process: the function runs when its virtual turn comes, its result arrives at its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, process: Process, speed: Speed) -> None:
        self._loop = loop
        self._process = process
        self._speed = speed
        self._waiting: deque[_Job] = deque()
        self._is_busy = False
        self.busy_seconds = 0.0
        """Virtual seconds charged so far."""

    def submit(
        self, done: Callable[[object], None], function: Callable[..., object], *arguments: object, seconds: float
    ) -> None:
        assert seconds >= 0, "a job cannot take negative time"
        if not self._process.is_alive:
            return
        self._waiting.append(_Job(done, function, arguments, seconds))
        if not self._is_busy:
            self._begin()

    def _begin(self) -> None:
        job = self._waiting.popleft()
        self._is_busy = True
        try:
            result: object = job.function(*job.arguments)
        except Exception as error:  # noqa: BLE001 - the door promises to hand every error of a job to its owner
            result = Failed(error)
        seconds = job.seconds * self._speed.slowness
        self.busy_seconds += seconds
        self._loop.call_later(seconds, self._end, job.done, result, context=self._process.context)

    def _end(self, done: Callable[[object], None], result: object) -> None:
        self._is_busy = False
        # The next job starts before the owner of this one is told: a device does not wait for its host.
        if self._waiting:
            self._begin()
        done(result)
