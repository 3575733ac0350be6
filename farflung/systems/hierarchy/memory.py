"""What a worker asks of an optimizer, to outlive crashes."""

from collections.abc import Mapping
from typing import Any, Protocol

from farflung.learn.parameters import Tensors


class Memory(Protocol):
    """What a learner's optimizer remembers; `learn.optimizer.NamedOptimizer` is one."""

    def state(self) -> tuple[Tensors, Mapping[str, Any]]:
        """Copies of its tensors, and its other values."""
        ...

    def load(self, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Go on from those."""
        ...
