"""What a worker asks of whatever learns, and of its optimizer."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from farflung.learn.parameters import Tensors


class Descended(Protocol):
    """What some local steps gave."""

    @property
    def loss(self) -> float: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...


class Learner(Protocol):
    """What learns; `learn.trainer.Trainer` is one."""

    @property
    def parameters(self) -> Tensors:
        """Live."""
        ...

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Descended:
        """Make that many steps; `progress_of_step(i)` is the run's progress at the i-th, between 0 and 1."""
        ...


class Memory(Protocol):
    """What a learner's optimizer remembers; `learn.optimizer.NamedOptimizer` is one."""

    def state(self) -> tuple[Tensors, Mapping[str, Any]]:
        """Copies of its tensors, and its other values."""
        ...

    def load(self, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Go on from those."""
        ...
