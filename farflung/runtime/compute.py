"""The compute door on real machines: one thread that runs what it is given, one call at a time, in order."""

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from farflung.runtime.log import logger
from farflung.world.doors import Failed


@dataclass(frozen=True, slots=True)
class _Job:
    done: Callable[[object], None]
    function: Callable[..., object]
    arguments: tuple[object, ...]
    context: contextvars.Context
    """Of whoever asked for it: what follows from the result belongs to the same trace."""


class ThreadCompute:
    """Implements `world.doors.Compute`. The loop of the thread that makes it receives the results."""

    def __init__(self, name: str = "farflung-compute") -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._is_stopping = False
        self._ended = asyncio.Event()
        # A daemon, so that a computation that never ends cannot keep the process from leaving.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(
        self, done: Callable[[object], None], function: Callable[..., object], *arguments: object, seconds: float
    ) -> None:
        self._jobs.put(_Job(done, function, arguments, contextvars.copy_context()))

    async def close(self, seconds: float = 5.0) -> None:
        """Drop what waits, and wait so long for the call that runs."""
        self._is_stopping = True
        self._jobs.put(None)
        # Not through a pool of threads: there is none any more while the interpreter ends.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)

    def _work(self) -> None:
        try:
            self._work_until_told()
        finally:
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits for the end.
                self._loop.call_soon_threadsafe(self._ended.set)

    def _work_until_told(self) -> None:
        while (job := self._jobs.get()) is not None and not self._is_stopping:
            try:
                result = job.function(*job.arguments)
            except Exception as error:
                result = Failed(error)
            try:
                self._loop.call_soon_threadsafe(self._hand_back, job.done, result, context=job.context)
            except RuntimeError:
                return  # The loop is closed: nobody waits for results any more.
            # Held until the next job comes, these could be gigabytes.
            del job, result

    def _hand_back(self, done: Callable[[object], None], result: object) -> None:
        if self._is_stopping:
            return
        try:
            done(result)
        except Exception:
            logger.exception("an actor failed when it was given a result")
