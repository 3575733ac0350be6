"""A group of tasks that starts, fails and is cancelled in order.

`asyncio.TaskGroup` keeps its children in an identity-hashed set, so that the order of cancellation differs between two
runs of one program; a simulation could not be replayed.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


class Nursery:
    """Children of one `open_nursery` block."""

    def __init__(self) -> None:
        self._children: list[asyncio.Task[Any]] = []
        self._parent = asyncio.current_task()
        self._error: BaseException | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start a child. If it fails, its siblings and the block are cancelled and its error is raised by the block."""
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
        if task.cancelled() or task.exception() is None or self._error is not None:
            return
        self._error = task.exception()
        self.cancel()
        if self._parent is not None:
            self._parent.cancel()

    async def _join(self) -> None:
        while self._children:
            child = self._children[0]
            try:
                await asyncio.shield(asyncio.gather(child, return_exceptions=True))
            except asyncio.CancelledError:
                self.cancel()
                if self._error is None:
                    await asyncio.gather(*self._children, return_exceptions=True)
                    raise


@asynccontextmanager
async def open_nursery() -> AsyncIterator[Nursery]:
    """`async with open_nursery() as nursery: nursery.start(...)`: leaves when all children are done.

    An error in the block or in a child cancels the rest, in order, and is raised.
    """
    nursery = Nursery()
    try:
        yield nursery
    except BaseException:
        nursery.cancel()
        await asyncio.gather(*nursery._children, return_exceptions=True)  # pyright: ignore[reportPrivateUsage]
        if nursery._error is not None:  # pyright: ignore[reportPrivateUsage]
            _forgive_cancellation(nursery)
            raise nursery._error from None  # pyright: ignore[reportPrivateUsage]
        raise
    await nursery._join()  # pyright: ignore[reportPrivateUsage]
    if nursery._error is not None:  # pyright: ignore[reportPrivateUsage]
        _forgive_cancellation(nursery)
        raise nursery._error  # pyright: ignore[reportPrivateUsage]


def _forgive_cancellation(nursery: Nursery) -> None:
    """The nursery cancelled its own parent to wake it; that cancellation must not leak out of the block."""
    if nursery._parent is not None:  # pyright: ignore[reportPrivateUsage]
        nursery._parent.uncancel()  # pyright: ignore[reportPrivateUsage]
