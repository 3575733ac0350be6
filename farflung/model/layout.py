"""The order in which a matrix lies in memory, chosen by what decodes faster on this processor.

One token is a vector times every matrix, so decoding is as fast as matrices are read. Matrix libraries read one order
at the speed of memory and another at half of it, depending on processor, library and shape.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

MATRIX_BYTES_MIN = 1 << 20
"""Smaller ones stay in caches, where the order matters little."""


def order_for_decoding(model: nn.Module, is_faster_by_column: Callable[[int, int], bool]) -> None:
    """Put the float32 matrices of linear layers in main memory into column order where one token is faster with it.

    `is_faster_by_column` is asked once per shape (rows, columns). Shapes and values stay, only strides change; sums are
    grouped otherwise, as they are on another processor. A matrix that something else uses too (a tied embedding is read
    by rows) is left alone.
    """
    users = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    weights = [
        module.weight
        for module in model.modules()
        if type(module) is nn.Linear and users[id(module.weight)] == 1 and _is_worth_it(module.weight)
    ]
    shapes = sorted({(weight.shape[0], weight.shape[1]) for weight in weights})
    chosen = {shape for shape in shapes if is_faster_by_column(*shape)}
    for weight in weights:
        if tuple(weight.shape) in chosen:
            weight.data = by_column(weight.data)


def by_column(matrix: torch.Tensor) -> torch.Tensor:
    """The same matrix with the entries of a column side by side."""
    return matrix.t().contiguous().t()


def _is_worth_it(weight: torch.Tensor) -> bool:
    return is_large_matrix(weight) and weight.is_contiguous()


def is_large_matrix(weight: torch.Tensor) -> bool:
    """Whether it is of a kind and size whose layout matters."""
    is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_plain and weight.nbytes >= MATRIX_BYTES_MIN
