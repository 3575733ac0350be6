"""A simulated process, and the callbacks that belong to one: through their context, whoever asked for them."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any

_current_process: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


class Process:
    """One life of a node: what it has running. A node that restarts gets a new one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.is_frozen = False
        self.context = contextvars.Context()
        self.context.run(_current_process.set, self)
        self.held: deque[ProcessHandle] = deque()
        """Callbacks that came due while frozen, in order."""
        self.tasks: dict[asyncio.Task[Any], None] = {}
        """Tasks not yet done, in order of creation."""

    @classmethod
    def dead(cls) -> "Process":
        """What a machine has before its first process."""
        process = cls("nobody")
        process.is_alive = False
        return process

    @classmethod
    def of(cls, context: contextvars.Context) -> "Process | None":
        """The process whose code runs in `context`; None for the network and the faults themselves."""
        return context.get(_current_process)


class ProcessHandle(asyncio.TimerHandle):
    """A callback with the process it belongs to."""

    __slots__ = ("is_timer", "process")

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        arguments: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
        *,
        is_timer: bool,
    ) -> None:
        context = contextvars.copy_context() if context is None else context
        super().__init__(when, callback, arguments, loop, context)
        self.process = Process.of(context)
        self.is_timer = is_timer

    def run(self) -> None:
        self._run()
