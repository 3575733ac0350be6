"""Named tensors: what a model's parameters and moments are, and the few operations on them.

All operations leave gradients alone. A trailing underscore means in place, as in torch.
"""

import hashlib
from collections.abc import Mapping

import torch

Tensors = dict[str, torch.Tensor]
"""Tensors by the name that the model gives them, in the model's order."""


def named_parameters(model: torch.nn.Module) -> Tensors:
    """The trainable parameters themselves (live, with their gradients); weights that are tied appear once."""
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


@torch.no_grad()
def copies(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The same values in memory of their own."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def zeros_like(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Zeros of the same names, shapes, dtypes and devices."""
    return {name: torch.zeros_like(tensor, requires_grad=False) for name, tensor in tensors.items()}


@torch.no_grad()
def assign_(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    """Copy the values of `source` into `target`, whose tensors stay the same objects."""
    assert target.keys() == source.keys(), f"not the same names: {sorted(target.keys() ^ source.keys())[:3]}"
    for name, tensor in target.items():
        tensor.copy_(source[name])


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
