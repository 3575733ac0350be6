"""Base weights in 8 or 4 bits: layers that make their weights when they compute, from codes and the sums of the tune.

    int8    one scale for each row: its largest magnitude / 127
    nf4     blocks of 64 along the rows, 16 quantiles of the normal distribution (QLoRA, arXiv 2305.14314, section 3)

The base of such a run **is** what the codes stand for, in the run's type of numbers: a value is a code's number times a
scale, one multiplication, which is the same everywhere. So its hash is that of plain tensors; who has the memory may
load them as floats (`round_to_quantised_`), measure the same and back-propagate; and a replay writes floats. Codes are
never written to: a layer computes with base - sums * 2^-K, made for the moment it is used.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function_variadic

from farflung.systems.onebyte.accumulator import write_tuned

Quantisation = Literal["int8", "nf4"]
QUANTISATIONS: tuple[str, ...] = get_args(Quantisation)
BLOCK_VALUES = 64
"""nf4: values that share a scale."""
INT8_MAX = 127
NF4_VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""As published, float32."""


class QuantisedLinear(nn.Module):
    """A linear layer whose weights are codes."""

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(self, layer: nn.Linear, quantisation: Quantisation) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.quantisation: Quantisation = quantisation
        codes, scales = quantised(weight, quantisation)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        # Name, shape, device and type of what the run knows the weight as, in the memory of one number.
        self.weight = nn.Parameter(weight.new_zeros(()).expand(weight.shape), requires_grad=False)
        self.bias = layer.bias
        self._sums: torch.Tensor | None = None
        self._exponent = 0

    def follow(self, sums: torch.Tensor, exponent: int) -> None:
        """From now on compute with base - sums * 2^-exponent, whatever `sums` (int32, of the weight's shape) become."""
        self._sums, self._exponent = sums, exponent

    def base(self) -> torch.Tensor:
        """What the codes stand for."""
        values = dequantised(self.codes, self.scales, self.weight.shape, self.quantisation)
        return values.to(self.weight.dtype)

    def tuned(self) -> torch.Tensor:
        """The present weights, in memory of their own."""
        weight = self.base()
        if self._sums is not None:
            write_tuned(weight, weight, [self._sums], self._exponent)
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear_of_layer(x, self.weight, self.bias, self)


def linear_of_layer(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layer: QuantisedLinear
) -> torch.Tensor:
    """x W^T + bias with a layer's present W; `weight` says which parameter that is, to whoever overrides torch."""
    if has_torch_function_variadic(x, weight):
        return handle_torch_function(linear_of_layer, (x, weight), x, weight, bias, layer)
    return functional.linear(x, layer.tuned(), bias)


def quantised(weight: torch.Tensor, quantisation: Quantisation) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (int8 [rows, columns]; nf4: uint8, two in a byte, the first in the high half) and float32 scales."""
    values = weight.float()
    if quantisation == "int8":
        scales = _no_zeros(values.abs().amax(1, keepdim=True) / INT8_MAX)
        return (values / scales).round().to(torch.int8), scales
    blocks = functional.pad(values.reshape(-1), (0, -values.numel() % BLOCK_VALUES)).view(-1, BLOCK_VALUES)
    scales = _no_zeros(blocks.abs().amax(1, keepdim=True))
    table = torch.tensor(NF4_VALUES, device=weight.device)
    codes = torch.bucketize(blocks / scales, (table[1:] + table[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], scales


def dequantised(
    codes: torch.Tensor, scales: torch.Tensor, shape: torch.Size, quantisation: Quantisation
) -> torch.Tensor:
    """What codes stand for, float32 of `shape`."""
    if quantisation == "int8":
        return codes.float() * scales
    table = torch.tensor(NF4_VALUES, device=codes.device)
    numbers = torch.stack((codes >> 4, codes & 15), dim=1).int().view(-1, BLOCK_VALUES)
    return (table[numbers] * scales).view(-1)[: shape.numel()].view(shape)


def _no_zeros(scales: torch.Tensor) -> torch.Tensor:
    """Where all values are 0, any scale does."""
    return torch.where(scales == 0, torch.ones_like(scales), scales)


@torch.no_grad()
def quantise_(model: nn.Module, quantisation: Quantisation) -> None:
    """Put codes in the place of a model's linear layers, one after another; the head and embeddings stay as they are.

    Raises:
        ValueError: it has no such layers.
    """
    for path, layer in _quantisable(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, QuantisedLinear(layer, quantisation))


@torch.no_grad()
def round_to_quantised_(model: nn.Module, quantisation: Quantisation) -> None:
    """Write into a model's linear layers what their codes would stand for: the same base, as floats."""
    for _, layer in _quantisable(model):
        codes, scales = quantised(layer.weight, quantisation)
        layer.weight.copy_(dequantised(codes, scales, layer.weight.shape, quantisation))


def _quantisable(model: Any) -> list[tuple[str, nn.Linear]]:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = [
        (path, module) for path, module in model.named_modules() if type(module) is nn.Linear and module is not head
    ]
    if not found:
        raise ValueError(
            "this model's layers are not torch.nn.Linear, and only those can be quantised here: leave quantisation out"
        )
    return found


def quantised_layers(model: nn.Module) -> dict[str, QuantisedLinear]:
    """By the name of the weight."""
    return {f"{path}.weight": layer for path, layer in model.named_modules() if isinstance(layer, QuantisedLinear)}


class BaseWeights(Mapping[str, torch.Tensor]):
    """A model's parameters by name, quantised ones as what they stand for, each made when it is asked for."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._layers = quantised_layers(model)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._layers[name].base() if name in self._layers else self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)
