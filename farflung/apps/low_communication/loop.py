"""The program's own loop as the engine's learner: the engine asks for steps, the loop makes them in its own time.

    engine, compute thread    run(32) ............................ average ... run(32) ...
    program's thread          step step step ... 32nd step: hook  (waits)     step step ...

The two never touch the lanes at once: the compute thread waits in `run` while the loop trains, and the loop in its hook
while the engine averages.
"""

import queue
from collections.abc import Callable
from dataclasses import dataclass

from farflung.learn.parameters import Tensors
from farflung.learn.staging import Lane
from farflung.world.errors import FarflungError

LOOK_SECONDS = 0.1
"""How often a waiting loop looks whether there is still something to wait for."""


class LoopLeft(FarflungError):
    """The program has left its loop, and no further steps will come."""


@dataclass(frozen=True, slots=True)
class StepsMade:
    """What the loop did; it keeps its losses to itself, and batches have no tokens that hooks could count."""

    num_steps: int
    loss: float = float("nan")
    num_tokens: int = 0


class LoopLearner:
    """Implements the engine's `Learner` for one lane."""

    def __init__(self, lane: Lane, num_steps: int) -> None:
        self.lane = lane
        self.num_steps = num_steps
        """Optimizer steps so far; a state that was taken from another site brings its own."""
        self.num_left = 0
        """Steps until the engine wants the loop back; the loop's own count."""
        self._num_asked = 0
        self._asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[StepsMade | None] = queue.SimpleQueue()

    @property
    def parameters(self) -> Tensors:
        """The lane's share of the parameters."""
        return self.lane.parameters

    @property
    def moments(self) -> dict[str, Tensors]:
        """The lane's share of the moments."""
        return self.lane.moments

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> StepsMade:
        """Let the loop make steps; called on the compute thread."""
        self._asked.put(num_steps)
        made = self._made.get()
        if made is None:
            raise LoopLeft("the program has left its loop")
        self.num_steps += made.num_steps
        return made

    def wait(self, check: Callable[[], None]) -> None:
        """Wait until the engine wants steps; `check` raises once that is in vain. Called in the loop."""
        while True:
            try:
                self.num_left = self._num_asked = self._asked.get(timeout=LOOK_SECONDS)
                return
            except queue.Empty:
                check()

    def advance(self, num_steps: int) -> bool:
        """Count steps of the loop; True if the engine has to be waited for now."""
        self.num_left -= num_steps
        if self.num_left == 0:
            self._made.put(StepsMade(self._num_asked))
        return self.num_left == 0

    def leave(self) -> None:
        """Let the compute thread go."""
        self._made.put(None)
