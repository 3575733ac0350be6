"""A group of tasks that starts, fails and is cancelled in order.

`asyncio.TaskGroup` keeps its children in an identity-hashed set, so that the order of cancellation differs between two
runs of one program; a simulation could not be replayed.
"""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any


class Nursery:
    """Children of one `async with open_nursery() as nursery` block; see `open_nursery`."""

    def __init__(self) -> None:
        self._children: list[asyncio.Task[Any]] = []
        self._parent: asyncio.Task[Any] | None = None
        self._error: BaseException | None = None
        self._is_leaving = False
        self._has_woken_parent = False
        self._all_done: asyncio.Future[None] | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start a child. If it fails, its siblings and the block are cancelled and its error is raised by the block."""
        assert self._parent is not None, "a nursery takes children inside its block only"
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._children.append(task)
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        """Ask all children to end, oldest first."""
        for child in list(self._children):
            child.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._children.remove(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._error is None:
            self._error = error
            self.cancel()
            self._wake_parent()
        if not self._children and self._all_done is not None and not self._all_done.done():
            self._all_done.set_result(None)

    def _wake_parent(self) -> None:
        if self._parent is not None and not self._is_leaving:
            self._has_woken_parent = True
            self._parent.cancel()

    async def __aenter__(self) -> "Nursery":
        self._parent = asyncio.current_task()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_leaving = True
        if self._has_woken_parent and self._parent is not None:
            # It arrived, because the parent was suspended in the block; it must not leak out of it.
            self._parent.uncancel()
        if error is not None:
            self._error = self._error or error
            self.cancel()
        await self._join()
        self._parent = None
        if self._error is not None and self._error is not error:
            raise self._error

    async def _join(self) -> None:
        while self._children:
            self._all_done = asyncio.get_running_loop().create_future()
            try:
                await self._all_done
            except asyncio.CancelledError as cancellation:
                self._error = self._error or cancellation
                self.cancel()


def open_nursery() -> Nursery:
    """`async with open_nursery() as nursery: nursery.start(...)`: leaves when all children are done.

    The first error, in the block or in a child, cancels all others, oldest first, and is raised once they have ended.
    Cancelling the task that is in the block cancels the children and, once they have ended, goes on.
    """
    return Nursery()
