"""Many perturbed models in one forward pass, without touching the weights.

The batch holds the same N sequences once for each of R replicas. Replica r is to see W + step[r] * a[r] b[r]^T, and a
matrix W is only ever used through its products, so its products are corrected instead:

    x W^T            + step[r] (x . b[r]) a[r]^T              linear layers, also where the weight is tied
    W[ids]           + step[r] a[r, ids] b[r]^T               embeddings
    w * normed + c   with w, c replaced by R vectors          norms and biases

Every operation of torch that reads a chosen parameter passes through here. One that is not known is refused, and so is
a parameter that nothing reads: what is measured is what was asked for, whatever the model's code looks like.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, resolve_name

from farflung.systems.onebyte.directions import Directions
from farflung.systems.onebyte.quantised import QuantisedLinear, linear_of_layer


@dataclass(frozen=True, slots=True)
class Perturbation:
    """How each replica's tensor differs from the model's."""

    steps: torch.Tensor
    """Signed step of each replica, float32 [R]."""
    left: torch.Tensor | None
    """a, [R, rows] in the dtype of the tensor."""
    right: torch.Tensor | None
    """b, [R, columns]."""
    values: torch.Tensor | None
    """Whole directions, [R, *shape]."""

    @classmethod
    def of(cls, directions: Directions, steps: torch.Tensor, like: torch.Tensor) -> "Perturbation":
        """Of one direction per replica, for a tensor such as `like`."""

        def ready(numbers: torch.Tensor | None) -> torch.Tensor | None:
            return None if numbers is None else numbers.to(like.device, _compute_dtype(like))

        values = None if directions.values is None else directions.entries(tuple(like.shape))
        return cls(steps.to(like.device), ready(directions.left), ready(directions.right), ready(values))

    @property
    def delta(self) -> torch.Tensor:
        """step * direction for a tensor with whole directions, [R, *shape]."""
        assert self.values is not None
        return self.values * self._factor(self.values.dim()).to(self.values.dtype)

    def add_products_(self, y: torch.Tensor, x: torch.Tensor, is_transposed: bool) -> None:
        """Add to y [R, n, rows] what products of x [R, n, columns] gain (transposed: x W instead of x W^T)."""
        if self.values is not None:
            y += torch.bmm(x, self.values if is_transposed else self.values.mT) * self._factor(3).to(x.dtype)
            return
        assert self.left is not None and self.right is not None
        inner, outer = (self.left, self.right) if is_transposed else (self.right, self.left)
        lengths = torch.bmm(x, (inner * self._factor(2)).to(x.dtype).unsqueeze(2))
        y.baddbmm_(lengths, outer.to(x.dtype).unsqueeze(1))

    def of_rows(self, ids: torch.Tensor) -> torch.Tensor:
        """What rows `ids` [R, n] of each replica's matrix gain, [R, n, columns]."""
        replica = torch.arange(len(ids), device=ids.device).unsqueeze(1)
        steps = self._factor(3)
        if self.values is not None:
            return self.values[replica, ids] * steps.to(self.values.dtype)
        assert self.left is not None and self.right is not None
        chosen = self.left[replica, ids].unsqueeze(2)
        return chosen * steps.to(chosen.dtype) * self.right.unsqueeze(1)

    def _factor(self, num_axes: int) -> torch.Tensor:
        return self.steps.view(-1, *[1] * (num_axes - 1))


def _compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype.is_floating_point else torch.float32


class _Perturbed(TorchFunctionMode):
    """Corrects the results of operations that read chosen parameters."""

    def __init__(self, names: Mapping[int, str], perturbations: Mapping[str, Perturbation], num_rows: int) -> None:
        super().__init__()
        self._names = names
        self._perturbations = perturbations
        self._num_rows = num_rows
        self.used: set[str] = set()
        self._handlers: dict[Any, Callable[..., torch.Tensor]] = {
            functional.linear: self._linear,
            functional.embedding: self._embedding,
            functional.layer_norm: self._layer_norm,
            functional.rms_norm: self._rms_norm,
            torch.addmm: self._addmm,
            linear_of_layer: self._linear_of_layer,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        names = [self._names[id(value)] for value in (*args, *kwargs.values()) if id(value) in self._names]
        if not names:
            return func(*args, **kwargs)
        if (handler := self._handlers.get(func)) is not None:
            self.used.update(names)
            return handler(*args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            raise ValueError(
                f"{names[0]} is used in a way that cannot be measured without changing it ({resolve_name(func)}): "
                f"leave it out with the pattern -{names[0]}"
            )
        return result  # a shape, a type, a device

    def _of(self, tensor: torch.Tensor | None) -> Perturbation | None:
        return None if tensor is None or id(tensor) not in self._names else self._perturbations[self._names[id(tensor)]]

    def _by_replica(self, rows: torch.Tensor, what: torch.Tensor) -> torch.Tensor:
        """Rows of all replicas [R * n, ..., columns] as [R, n * ..., columns]."""
        if rows.shape[0] % self._num_rows:
            raise ValueError(
                f"{self._names[id(what)]} is applied to a mixture of sequences, so its change cannot be measured for "
                f"each: leave it out with the pattern -{self._names[id(what)]}"
            )
        return rows.reshape(self._num_replicas, -1, rows.shape[-1])

    @property
    def _num_replicas(self) -> int:
        return len(next(iter(self._perturbations.values())).steps)

    def _shifted(self, y: torch.Tensor, vector: torch.Tensor, perturbation: Perturbation | None) -> torch.Tensor:
        """y + vector, with the vector of each replica."""
        if perturbation is None:
            return y + vector
        changed = (vector + perturbation.delta).unsqueeze(1)
        return (self._by_replica(y, vector) + changed).view(y.shape)

    def _scaled(self, y: torch.Tensor, vector: torch.Tensor, perturbation: Perturbation | None) -> torch.Tensor:
        """y * vector, with the vector of each replica."""
        if perturbation is None:
            return y * vector
        changed = (vector + perturbation.delta).unsqueeze(1)
        return (self._by_replica(y, vector) * changed).view(y.shape)

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self._linear_with(weight, x, weight, bias)

    def _linear_of_layer(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layer: QuantisedLinear
    ) -> torch.Tensor:
        return self._linear_with(layer.tuned(), x, weight, bias)

    def _linear_with(
        self, values: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """A linear layer with `values` for its weight, which the run knows as the parameter `weight`."""
        of_bias = self._of(bias)
        y = functional.linear(x, values, None if of_bias is not None else bias)
        if bias is not None and of_bias is not None:
            y = self._shifted(y, bias, of_bias)
        return self._with_products(y, x, weight, is_transposed=False)

    def _addmm(self, bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        of_bias = self._of(bias)
        y = torch.addmm(bias, x, weight) if of_bias is None else self._shifted(x @ weight, bias, of_bias)
        return self._with_products(y, x, weight, is_transposed=True)

    def _with_products(
        self, y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, is_transposed: bool
    ) -> torch.Tensor:
        if (perturbation := self._of(weight)) is None:
            return y
        perturbation.add_products_(
            y.view(self._num_replicas, -1, y.shape[-1]), self._by_replica(x, weight), is_transposed
        )
        return y

    def _embedding(self, ids: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        rows = functional.embedding(ids, weight, *args, **kwargs)
        perturbation = self._of(weight)
        assert perturbation is not None
        if ids.shape[0] == 1 != self._num_rows:  # positions, the same for all sequences
            ids, rows = ids.expand(self._num_rows, -1), rows.expand(self._num_rows, -1, -1)
        self._by_replica(rows, weight)
        gained = perturbation.of_rows(ids.reshape(self._num_replicas, -1))
        return rows + gained.view(rows.shape).to(rows.dtype)

    def _layer_norm(
        self, x: torch.Tensor, shape: Any, weight: torch.Tensor, bias: torch.Tensor | None = None, eps: float = 1e-5
    ) -> torch.Tensor:
        normed = functional.layer_norm(x, shape, None, None, eps)
        y = self._scaled(normed, weight, self._of(weight))
        return y if bias is None else self._shifted(y, bias, self._of(bias))

    def _rms_norm(self, x: torch.Tensor, shape: Any, weight: torch.Tensor, eps: float | None = None) -> torch.Tensor:
        return self._scaled(functional.rms_norm(x, shape, None, eps), weight, self._of(weight))


@contextmanager
def perturbed(
    model: nn.Module, parameters: Mapping[str, torch.Tensor], perturbations: Mapping[str, Perturbation], num_rows: int
) -> Iterator[None]:
    """Within, the model computes for each replica with its own perturbation of `parameters` (the model's own tensors).

    `num_rows`: sequences in the batch: R times as many as are measured, replica by replica.

    Raises:
        ValueError: a parameter is used in an unknown way, or not at all.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    mode = _Perturbed(names, perturbations, num_rows)
    with ExitStack() as stack:
        for module, name in _own_norms(model, names):
            stack.enter_context(_swapped_norm(module, name, mode, perturbations[name], num_rows))
        stack.enter_context(mode)
        yield
    unused = [name for name in parameters if name not in mode.used]
    if unused:
        raise ValueError(f"{unused[0]} is not used when the model computes: leave it out with the pattern -{unused[0]}")


def _own_norms(model: nn.Module, names: Mapping[int, str]) -> list[tuple[nn.Module, str]]:
    """Modules whose one parameter is a chosen vector that their own code multiplies with: RMSNorm of most families."""
    found: list[tuple[nn.Module, str]] = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        is_vector = len(own) == 1 and own[0].dim() == 1 and id(own[0]) in names and not any(module.children())
        if is_vector and not isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.Linear | nn.Embedding):
            found.append((module, names[id(own[0])]))
    return found


@contextmanager
def _swapped_norm(
    module: nn.Module, name: str, mode: _Perturbed, perturbation: Perturbation, num_rows: int
) -> Iterator[None]:
    """Let a norm's own code see one vector per row in place of its parameter."""
    ((attribute, parameter),) = module.named_parameters(recurse=False)
    changed = (parameter + perturbation.delta).repeat_interleave(num_rows // len(perturbation.steps), 0)

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        if x.shape[0] != num_rows:
            raise ValueError(f"{name} is applied to a mixture of sequences: leave it out with the pattern -{name}")
        mode.used.add(name)
        module._parameters[attribute] = changed.view(num_rows, *[1] * (x.dim() - 2), -1)  # type: ignore[assignment]

    def after(*_: Any) -> None:
        module._parameters[attribute] = parameter

    handles = (module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        after()
        for handle in handles:
            handle.remove()
