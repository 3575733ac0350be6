"""Linear layers with a second copy of their matrix, laid out for a few tokens at once.

Matrix libraries pass one token at the speed of memory, and many at that of arithmetic. With some four to thirty, such
as the newest tokens of as many sessions, they lay the matrix out anew at every call, which takes longer than reading
it. A copy that lies ready saves that, for the memory of the weights once more.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from farflung.model.layout import is_large_matrix

TOKENS_MIN = 4
TOKENS_MAX = 32
"""With fewer and with more tokens the matrix itself is as fast."""
TOKENS_TYPICAL = 8
"""For so many the copy is laid out."""


class PackedLinear(nn.Linear):
    """A linear layer that passes a few tokens by its copy, unless gradients are wanted. The copy is `pack`ed again
    whenever the weight was changed."""

    packed: Tensor

    def pack(self) -> None:
        """Lay the copy out."""
        self.packed = packed_copy(self.weight.detach())

    def forward(self, input: Tensor) -> Tensor:
        num_tokens = input.numel() // self.in_features
        if TOKENS_MIN <= num_tokens <= TOKENS_MAX and not torch.is_grad_enabled():
            return packed_linear(input, self.packed, self.bias)
        return super().forward(input)


def pack_for_batches(model: nn.Module, is_faster_packed: Callable[[int, int], bool]) -> int:
    """Give the float32 matrices of linear layers in main memory a packed copy where it is faster; the copies' bytes.

    `is_faster_packed` is asked once per shape (rows, columns). Values stay; sums are grouped otherwise.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear and is_large_matrix(module.weight)]
    chosen = {shape for shape in sorted({_shape(layer) for layer in layers}) if is_faster_packed(*shape)}
    num_bytes = 0
    for layer in layers:
        if _shape(layer) in chosen:
            layer.__class__ = PackedLinear
            cast(PackedLinear, layer).pack()
            num_bytes += layer.weight.nbytes
    return num_bytes


def pack_again(model: nn.Module) -> None:
    """Renew the copies, after weights were changed."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.pack()


def _shape(layer: nn.Linear) -> tuple[int, int]:
    return layer.out_features, layer.in_features


def packed_copy(matrix: Tensor) -> Tensor:
    """The matrix as oneDNN wants it; opaque to all but `packed_linear`."""
    return torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), TOKENS_TYPICAL)


def packed_linear(input: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear` with the matrix that was packed."""
    return torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")
