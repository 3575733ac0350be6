"""What blocks and sessions cost in memory, asked of the family's own layers without allocating any."""

from typing import Any

import torch
from torch import Tensor

from farflung.model.cache import SpanCache
from farflung.model.cut import Prelude, Skeleton, build_skeleton, remove_ends
from farflung.model.source import ModelSource


class _Measured(Exception):
    """Carries what a layer was about to store, and ends its forward there."""

    def __init__(self, num_values: int) -> None:
        self.num_values = num_values


class _MeasuringCache(SpanCache):
    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        raise _Measured(key_states.numel() + value_states.numel())


def block_parameters(skeleton: Skeleton) -> int:
    """Of the largest block."""
    return max(sum(weight.numel() for weight in layer.parameters()) for layer in skeleton.layers)


def block_bytes(source: ModelSource, dtype: torch.dtype) -> int:
    """Bytes of the largest block's weights in `dtype`."""
    return block_parameters(build_skeleton(source, dtype)) * dtype.itemsize


def bytes_per_token(source: ModelSource, dtype: torch.dtype) -> int:
    """Bytes that one token of one sequence takes in the cache of one block (the largest), before spare capacity."""
    skeleton = build_skeleton(source, dtype)
    layers = list(skeleton.layers)
    prelude = Prelude(skeleton, layers, remove_ends(skeleton, source.hidden_size, dtype))
    hidden_BTH = torch.zeros(1, 1, source.hidden_size, device="meta", dtype=dtype)
    cache = _MeasuringCache(source.config, 0, source.num_blocks)
    prelude.learn_form(hidden_BTH.expand(1, 3, -1), cache)
    return (
        max(
            _values_stored(layer, hidden_BTH, call.args, call.kwargs)
            for layer, call in zip(layers, prelude.calls(hidden_BTH, cache), strict=True)
        )
        * dtype.itemsize
    )


def _values_stored(layer: torch.nn.Module, hidden_BTH: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    try:
        layer(hidden_BTH, *args, **kwargs)
    except _Measured as measured:
        return measured.num_values
    raise AssertionError("a layer that stores nothing is refused by the probe")
