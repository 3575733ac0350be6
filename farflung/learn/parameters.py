"""Named tensors: what a model's parameters, moments and differences are, and the few operations on them.

All operations take sets with the same names, leave gradients alone, and go through the names in the order of the first
argument. A trailing underscore means in place, as in torch.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch

Tensors = dict[str, torch.Tensor]
"""Tensors by the name that the model gives them, in the model's order."""


def named_parameters(model: torch.nn.Module) -> Tensors:
    """The trainable parameters themselves (live, with their gradients); weights that are tied appear once."""
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def _pairs(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    assert first.keys() == second.keys(), f"not the same names: {sorted(first.keys() ^ second.keys())[:3]}"
    return ((name, second[name]) for name in first)


@torch.no_grad()
def copies(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The same values in memory of their own."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def zeros_like(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Zeros of the same names, shapes, dtypes and devices."""
    return {name: torch.zeros_like(tensor, requires_grad=False) for name, tensor in tensors.items()}


@torch.no_grad()
def difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> Tensors:
    """`a - b`, on the device of `a`."""
    return {name: a[name].detach() - other.detach().to(a[name].device) for name, other in _pairs(a, b)}


@torch.no_grad()
def add_scaled_(target: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], scale: float) -> None:
    """`target += scale * other`."""
    for name, tensor in _pairs(target, other):
        target[name].add_(tensor.to(target[name].device), alpha=scale)


@torch.no_grad()
def lerp_(target: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], weight: float) -> None:
    """`target = (1 - weight) * target + weight * other`; weights 0 and 1 are exact."""
    for name, tensor in _pairs(target, other):
        target[name].lerp_(tensor.to(target[name]), weight)


@torch.no_grad()
def assign_(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    """Copy the values of `source` into `target`, whose tensors stay the same objects."""
    for name, tensor in _pairs(target, source):
        target[name].copy_(tensor)


@torch.no_grad()
def mean(sets: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float] | None = None) -> Tensors:
    """The weighted mean (equal weights by default) in the dtype of the first set, summed in the order given.

    Sums are float64, one tensor at a time: the mean of equal sets is that set, and whoever averages the same sets in
    the same order gets the same bits.
    """
    shares = [1.0] * len(sets) if weights is None else list(weights)
    assert sets and len(shares) == len(sets) and sum(shares) > 0
    assert all(tensors.keys() == sets[0].keys() for tensors in sets), "not the same names"
    return {name: _mean_of([tensors[name] for tensors in sets], shares) for name in sets[0]}


def _mean_of(tensors: list[torch.Tensor], shares: list[float]) -> torch.Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64, requires_grad=False)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(tensor.to(total.device), alpha=share)
    return total.div_(sum(shares)).to(tensors[0].dtype)


@torch.no_grad()
def norm(tensors: Mapping[str, torch.Tensor]) -> float:
    """The Euclidean norm of all values together."""
    return math.hypot(*(_norm_of(tensor) for tensor in tensors.values()))


def _norm_of(tensor: torch.Tensor) -> float:
    # torch.linalg has no types that a strict checker can read.
    return float(cast(torch.Tensor, torch.linalg.vector_norm(tensor, dtype=torch.float64)))  # pyright: ignore[reportUnknownMemberType]


def num_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Memory of the values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """SHA-256 over names, dtypes, shapes and values: 32 bytes, the same on every machine and in every order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{values.dtype}\0{tuple(values.shape)}\0".encode())
        if values.numel():
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def joined(groups: Mapping[str, Mapping[str, torch.Tensor]]) -> Tensors:
    """Sets of tensors as one: `{"first_moment": {"wte": t}}` becomes `{"first_moment/wte": t}`, as a file holds it."""
    return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def parted(tensors: Mapping[str, torch.Tensor]) -> dict[str, Tensors]:
    """Undo `joined`."""
    groups: dict[str, Tensors] = {}
    for path, tensor in tensors.items():
        group, _, name = path.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups
