"""Who waits for what: the sentence in the error of a simulation that hangs."""

import asyncio
from typing import Any

from farflung.sim.loop import VirtualLoop


def who_waits(loop: VirtualLoop) -> str:
    """One line per task that is not done: its name and the lines of code it is suspended at, outermost first."""
    lines = [f"  {task.get_name()} waits at {_suspended_at(task)}" for task in loop.tasks]
    return "\n".join(["waiting:", *lines])


def _suspended_at(task: asyncio.Task[Any]) -> str:
    places: list[str] = []
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is not None:
            code = frame.f_code
            places.append(f"{code.co_name} ({code.co_filename.rsplit('/', 2)[-1]}:{frame.f_lineno})")
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return " > ".join(places) or "its start"
