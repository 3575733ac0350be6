"""An event loop in a thread of its own, for callers that cannot await: a synchronous `generate`, a notebook."""

import asyncio
import atexit
import contextlib
import contextvars
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

CLOSE_SECONDS_MAX = 5.0
"""How long leaving waits for what is still under way."""


class LoopThread:
    """Runs coroutines for other threads, until `close` or the end of the process."""

    def __init__(self, name: str = "farflung-loop") -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> "LoopThread":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result, or its exception. An interrupt (Ctrl-C) while waiting cancels it and is raised.

        Raises:
            RuntimeError: closed, or called in a process that was forked from the one that made it.
        """
        reason = self._why_not()
        if reason is not None:
            coroutine.close()
            raise RuntimeError(reason)
        ended = threading.Event()
        # asyncio's two futures refer to each other, so a result in them, and the caller's context in their task, would
        # live until the next garbage collection.
        result: list[T] = []
        task = _followed(coroutine, result, ended)
        future = contextvars.Context().run(asyncio.run_coroutine_threadsafe, task, self._loop)
        try:
            future.result()
            return result.pop()
        except BaseException:
            if future.cancel():
                # What the coroutine does on its way out is over when the caller goes on.
                ended.wait(CLOSE_SECONDS_MAX)
            raise

    def close(self) -> None:
        """Cancel what is under way, wait for its end, and stop. Harmless when repeated, and in a forked process."""
        atexit.unregister(self.close)
        if os.getpid() != self._process or self._loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):  # The loop may have been closed by its own thread just now.
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS_MAX)

    def _why_not(self) -> str | None:
        if os.getpid() != self._process:
            return "this process was forked from one that was connected; connect after the fork, or start it by spawn"
        if threading.current_thread() is self._thread:
            return "the event loop's own thread would wait for itself; await the coroutine instead"
        return "the connection is closed" if self._loop.is_closed() or not self._thread.is_alive() else None

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = sorted(asyncio.all_tasks(self._loop), key=lambda task: task.get_name())
            for task in tasks:
                task.cancel()
            ending = asyncio.wait(tasks, timeout=CLOSE_SECONDS_MAX) if tasks else asyncio.sleep(0)
            self._loop.run_until_complete(ending)
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


async def _followed(coroutine: Coroutine[Any, Any, T], result: list[T], ended: threading.Event) -> None:
    try:
        result.append(await coroutine)
    finally:
        ended.set()
