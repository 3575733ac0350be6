"""Arithmetic on named tensors, written out plainly, that papers' equations are held to."""

import math
from collections.abc import Mapping, Sequence

import torch

from farflung.learn.parameters import Tensors

Named = Mapping[str, torch.Tensor]


def difference(a: Named, b: Named) -> Tensors:
    """a - b."""
    return {name: a[name].detach() - b[name].detach() for name in a}


def mean(sets: Sequence[Named]) -> Tensors:
    """The mean of sets with the same names, summed in float64."""
    return {
        name: torch.stack([one[name].detach().double() for one in sets]).mean(0).to(sets[0][name]) for name in sets[0]
    }


def norm(tensors: Named) -> float:
    """The Euclidean norm of all values together."""
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors.values()))
