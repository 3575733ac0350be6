"""Named tensors do what their names say, in place where they say so, and a fingerprint misses no change."""

import pytest
import torch

from farflung.learn.parameters import (
    Tensors,
    assign_,
    copies,
    fingerprint,
    joined,
    named_parameters,
    num_bytes,
    parted,
    zeros_like,
)


def some(seed: int, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (3, 4), "bias": (5,), "scalar": (), "empty": (0, 2)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


class Tied(torch.nn.Module):
    """Two layers with one weight, and one that does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.outer = torch.nn.Linear(4, 4)
        self.outer.weight = self.inner.weight
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)


def test_parameters_are_live_in_order_and_tied_ones_appear_once() -> None:
    model = Tied()
    parameters = named_parameters(model)
    assert list(parameters) == ["inner.weight", "inner.bias", "outer.bias"]
    zeros = zeros_like(parameters)
    assert not any(tensor.requires_grad for tensor in zeros.values())
    assign_(parameters, zeros)
    assert not model.outer.weight.any() and model.frozen.weight.any()
    assert model.inner.weight.requires_grad and model.inner.weight.grad_fn is None


def test_copies_are_apart_from_what_they_copy() -> None:
    parameters = named_parameters(Tied())
    before = copies(parameters)
    assign_(parameters, zeros_like(parameters))
    for name, tensor in parameters.items():
        assert not tensor.any() and not before[name].requires_grad
        assert before[name].any()


def test_sets_with_other_names_are_refused() -> None:
    other = some(1)
    other["more"] = other.pop("bias")
    with pytest.raises(AssertionError, match="bias"):
        assign_(some(1), other)


def test_size_counts_each_dtype_as_it_is() -> None:
    tensors = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]], dtype=torch.float64)}
    assert num_bytes(tensors) == 4 + 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_fingerprint_is_of_values_not_of_memory(dtype: torch.dtype) -> None:
    tensors = some(1, dtype)
    shuffled = {name: tensors[name] for name in reversed(tensors)}
    shuffled["weight"] = tensors["weight"].T.contiguous().T
    assert fingerprint(tensors) == fingerprint(shuffled)
    assert len(fingerprint(tensors)) == 32


def test_fingerprint_sees_every_kind_of_change() -> None:
    def changed(name: str, tensor: torch.Tensor) -> bytes:
        return fingerprint({**some(1), name: tensor})

    weight = some(1)["weight"]
    bit = weight.clone()
    bit.view(torch.int32)[2, 3] ^= 1
    variants = [
        fingerprint(some(1)),
        changed("weight", bit),
        changed("weight", weight.reshape(4, 3)),
        changed("weight", weight.double()),
        changed("weight", weight.view(torch.int32)),
        changed("another", weight),
        fingerprint({}),
    ]
    assert len(set(variants)) == len(variants)


def test_joined_groups_part_again() -> None:
    groups = {"first_moment": some(1), "parameters": {"layers.0/odd": torch.ones(2)}}
    flat = joined(groups)
    assert "first_moment/bias" in flat and "parameters/layers.0/odd" in flat
    again = parted(flat)
    assert list(again) == list(groups) and list(again["first_moment"]) == list(groups["first_moment"])
    assert all(again[group][name] is tensor for group, tensors in groups.items() for name, tensor in tensors.items())
