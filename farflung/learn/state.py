"""What something in training remembers, in the two forms that a checkpoint holds: tensors by name, and plain values."""

from typing import Any, NamedTuple

from farflung.learn.parameters import Tensors


class State(NamedTuple):
    """Everything needed to go on elsewhere as if nothing had happened.

    The tensors are live: write them before the next step, or keep copies.
    """

    tensors: Tensors
    values: dict[str, Any]
    """Numbers, strings, lists and dictionaries, fit for JSON."""
