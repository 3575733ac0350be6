"""Between a learner's named tensors and the one vector that an exchange averages."""

from collections.abc import Mapping

import torch

from farflung.learn.parameters import Tensors
from farflung.systems.desync.cadence import GRADIENTS, PARAMETERS
from farflung.systems.desync.learner import Learner


def lengths_of(learner: Learner) -> dict[str, int]:
    """Values of every state that can be averaged, by its name."""
    num_values = length_of(learner.parameters)
    moments = {name: length_of(tensors) for name, tensors in learner.moments.items()}
    return {PARAMETERS: num_values, GRADIENTS: num_values, **moments}


def length_of(tensors: Mapping[str, torch.Tensor]) -> int:
    """Values of all tensors together."""
    return sum(tensor.numel() for tensor in tensors.values())


@torch.no_grad()
def flattened(tensors: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
    """Write all values, in the order of the names as given, into `out` [length]."""
    offset = 0
    for tensor in tensors.values():
        out[offset : offset + tensor.numel()] = tensor.detach().reshape(-1)
        offset += tensor.numel()


def unflattened(vector: torch.Tensor, like: Mapping[str, torch.Tensor]) -> Tensors:
    """Views into `vector` with the names and shapes of `like`."""
    views: Tensors = {}
    offset = 0
    for name, tensor in like.items():
        views[name] = vector[offset : offset + tensor.numel()].view(tensor.shape)
        offset += tensor.numel()
    return views
