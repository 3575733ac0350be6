"""Long work of a role in small steps: one generator at a time, which asks for effects and gets what comes of them.

A model of gigabytes is updated part by part, so that a server stays responsive and needs little memory; an update is
still applied as a whole before the next one is begun, because the queue is served in order.
"""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from farflung.world.doors import Failed
from farflung.world.effects import Effect, Load, Run


@dataclass(frozen=True, slots=True)
class Compute:
    """Run `function(*arguments)` on the device; its result is what the generator gets."""

    function: Callable[..., object]
    arguments: tuple[object, ...]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Read:
    """Read a value of the store; it is what the generator gets."""

    key: str


Work = Generator[Effect | Compute | Read, Any, None]


class WorkQueue:
    """Works on one thing after another; `job` names this queue among the jobs of its role."""

    def __init__(self, job: str) -> None:
        self.job = job
        self._waiting: deque[Work] = deque()
        self._current: Work | None = None

    @property
    def is_idle(self) -> bool:
        return self._current is None

    def push(self, work: Work) -> list[Effect]:
        """Do `work` when its turn comes; returns what is to be done now."""
        self._waiting.append(work)
        return [] if self._current is not None else self._go_on(None)

    def finished(self, result: object) -> list[Effect]:
        """What the current work asked for is done."""
        if isinstance(result, Failed):
            raise AssertionError("a step of a server's own work cannot fail") from result.error
        return self._go_on(result)

    def _go_on(self, result: object) -> list[Effect]:
        effects: list[Effect] = []
        while True:
            if self._current is None:
                if not self._waiting:
                    return effects
                self._current, result = self._waiting.popleft(), None
            try:
                asked = self._current.send(result)
            except StopIteration:
                self._current = None
                continue
            match asked:
                case Compute(function, arguments, seconds):
                    return [*effects, Run(self.job, function, arguments, seconds)]
                case Read(key):
                    return [*effects, Load(self.job, key)]
                case _:
                    effects.append(asked)
                    result = None
