"""What an engine asks of whatever learns: `learn.trainer.Trainer`, a group of processes, or a test's quadratic."""

from collections.abc import Callable
from typing import Protocol

from farflung.learn.parameters import Tensors


class Descended(Protocol):
    """What some local steps came to."""

    @property
    def loss(self) -> float:
        """Mean over the steps."""
        ...

    @property
    def num_steps(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...


class Learner(Protocol):
    """Makes local steps. All its functions run on the compute door, one at a time."""

    @property
    def parameters(self) -> Tensors:
        """Live: what is written to them is what the next step starts from."""
        ...

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Descended:
        """Make that many steps; step i of them (from 0) is at `progress_of_step(i)` of the run's budget."""
        ...
