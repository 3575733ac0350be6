"""Between named tensors and stretches of the one vector that holds them all, in the order of their names as given."""

from collections.abc import Iterator, Mapping

import torch

from farflung.learn.parameters import Tensors


def length_of(tensors: Mapping[str, torch.Tensor]) -> int:
    """Values of all tensors together."""
    return sum(tensor.numel() for tensor in tensors.values())


@torch.no_grad()
def flattened(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A copy of all values, [length] float32 on the CPU."""
    out = torch.empty(length_of(tensors))
    offset = 0
    for tensor in tensors.values():
        out[offset : offset + tensor.numel()] = tensor.detach().reshape(-1)
        offset += tensor.numel()
    return out


def unflattened(vector: torch.Tensor, like: Mapping[str, torch.Tensor]) -> Tensors:
    """Views into `vector` with the names and shapes of `like`."""
    views: Tensors = {}
    offset = 0
    for name, tensor in like.items():
        views[name] = vector[offset : offset + tensor.numel()].view(tensor.shape)
        offset += tensor.numel()
    return views


def _overlaps(
    tensors: Mapping[str, torch.Tensor], first: int, values: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(stretch of a tensor, the values that belong there) for `values` at `first` of the vector."""
    offset = 0
    for tensor in tensors.values():
        begin, end = max(offset, first), min(offset + tensor.numel(), first + values.numel())
        if begin < end:
            yield tensor.detach().view(-1)[begin - offset : end - offset], values[begin - first : end - first]
        offset += tensor.numel()


@torch.no_grad()
def assign_stretch(tensors: Mapping[str, torch.Tensor], first: int, values: torch.Tensor) -> None:
    """Write `values` over the stretch of the vector that begins at `first`."""
    for own, new in _overlaps(tensors, first, values):
        own.copy_(new)


@torch.no_grad()
def add_stretch(tensors: Mapping[str, torch.Tensor], first: int, values: torch.Tensor, scale: float) -> None:
    """Add `scale * values` to the stretch of the vector that begins at `first`."""
    for own, change in _overlaps(tensors, first, values):
        own.add_(change.to(own), alpha=scale)
