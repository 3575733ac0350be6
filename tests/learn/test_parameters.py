"""Named tensors do what their names say, in place where they say so, and a fingerprint misses no change."""

import pytest
import torch

from farflung.learn.parameters import (
    Tensors,
    add_scaled_,
    assign_,
    copies,
    difference,
    fingerprint,
    joined,
    lerp_,
    mean,
    named_parameters,
    norm,
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
    add_scaled_(parameters, before, 1.0)
    for name, tensor in parameters.items():
        assert torch.equal(tensor, 2 * before[name])
        assert not before[name].requires_grad


def test_difference_added_back_ends_where_the_first_was() -> None:
    a, b = some(1), some(2)
    delta = difference(a, b)
    add_scaled_(b, delta, 1.0)
    for name in a:
        torch.testing.assert_close(a[name], b[name])


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.75, 1.0])
def test_lerp_weighs_the_other(weight: float) -> None:
    target, other = some(1), some(2)
    expected = {name: (1 - weight) * target[name] + weight * other[name] for name in target}
    lerp_(target, other, weight)
    for name in target:
        torch.testing.assert_close(target[name], expected[name])
    if weight in (0.0, 1.0):
        assert fingerprint(target) == fingerprint(other if weight else some(1))


def test_mean_of_equal_sets_is_the_set_and_weights_count() -> None:
    assert fingerprint(mean([some(1)] * 3)) == fingerprint(some(1))
    by_weight = mean([some(1), some(2)], weights=[3, 1])
    by_repeating = mean([some(1), some(1), some(1), some(2)])
    for name in by_weight:
        torch.testing.assert_close(by_weight[name], by_repeating[name])


def test_mean_of_short_floats_is_summed_in_longer_ones() -> None:
    # 256 + 1 is 256 in bfloat16: a running sum in it would never grow.
    sets = [{"x": torch.tensor([256.0], dtype=torch.bfloat16)}] + [{"x": torch.ones(1, dtype=torch.bfloat16)}] * 255
    result = mean(sets)["x"]
    assert result.dtype == torch.bfloat16 and abs(float(result) - 511 / 256) < 0.01


def test_sets_with_other_names_are_refused() -> None:
    other = some(1)
    other["more"] = other.pop("bias")
    with pytest.raises(AssertionError, match="bias"):
        difference(some(1), other)
    with pytest.raises(AssertionError):
        mean([some(1), other, some(1)])


def test_norm_and_size() -> None:
    tensors = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]], dtype=torch.float64)}
    assert norm(tensors) == 5.0
    assert num_bytes(tensors) == 4 + 8
    assert norm({}) == 0.0


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
