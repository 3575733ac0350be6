"""Low-rank additions to the linear layers of blocks, each for tokens of its own, without touching the layers.

Legend: N tokens, I and O features that enter and leave a layer, R rank (LoRA, arXiv 2106.09685).
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to one layer's output for input x: x inner^T outer^T; any scale is in `outer`."""

    inner_RI: Tensor
    outer_OR: Tensor

    @property
    def bytes(self) -> int:
        return self.inner_RI.nbytes + self.outer_OR.nbytes

    def of(self, input: Tensor) -> Tensor:
        """The addition to the output for this input [..., I], in the type of the factors."""
        linear = nn.functional.linear
        return linear(linear(input.to(self.inner_RI.dtype), self.inner_RI), self.outer_OR)


BlockAdditions = Mapping[str, LowRank]
"""By the layer's name within its block, such as `mlp.up_proj`."""
Additions = Mapping[int, BlockAdditions]
"""By the block's number in the model."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens [start, end) of all that pass, counted row after row, and what is added for them; `end` None: for all."""

    start: int
    end: int | None
    additions: Additions


def layer_sizes(module: nn.Module) -> tuple[int, int] | None:
    """Features that enter and leave a module that can be added to; None: it cannot."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return None


def layers_within(block: nn.Module) -> dict[str, tuple[int, int]]:
    """The layers of a block that can be added to, by name, with their sizes; not those of experts, which see some
    tokens only."""
    found = {name: layer_sizes(module) for name, module in block.named_modules() if "experts." not in f"{name}."}
    return {name: sizes for name, sizes in found.items() if sizes is not None}


def whole(additions: Additions | None) -> list[Stretch]:
    """The same for all tokens."""
    return [] if additions is None else [Stretch(0, None, additions)]


def side_by_side(num_tokens: Sequence[int], additions: Sequence[Additions | None]) -> tuple[list[int], list[Stretch]]:
    """An order of pieces of so many tokens in which those with the same additions lie side by side, so that each
    layer's factors are read once, and the stretches in that order."""
    groups: dict[int, list[int]] = {}
    for at, each in enumerate(additions or [None] * len(num_tokens)):
        groups.setdefault(id(each), []).append(at)
    stretches: list[Stretch] = []
    end = 0
    for group in groups.values():
        start, end = end, end + sum(num_tokens[at] for at in group)
        added = additions[group[0]] if additions else None
        if added is not None:
            stretches.append(Stretch(start, end, added))
    return [at for group in groups.values() for at in group], stretches


@contextmanager
def adding(layers: Sequence[nn.Module], first: int, stretches: Sequence[Stretch]) -> Generator[None]:
    """While this is open, blocks from `first` on add to what leaves their linear layers."""
    wanted: dict[nn.Module, list[tuple[int, int | None, LowRank]]] = {}
    for stretch in stretches:
        for number, block in enumerate(layers, first):
            for name, added in stretch.additions.get(number, {}).items():
                wanted.setdefault(block.get_submodule(name), []).append((stretch.start, stretch.end, added))
    with ExitStack() as hooks:
        for module, parts in wanted.items():
            handle = module.register_forward_hook(_hook(parts))
            hooks.callback(handle.remove)
        yield


def _hook(parts: Sequence[tuple[int, int | None, LowRank]]) -> Callable[..., Tensor]:
    def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (input,) = inputs
        if len(parts) == 1 and parts[0][1] is None:
            return (output + parts[0][2].of(input)).to(output.dtype)
        rows_NI, sums_NO = input.flatten(0, -2), output.flatten(0, -2)
        for start, end, added in parts:
            sums_NO[start:end] += added.of(rows_NI[start:end])
        return sums_NO.view(output.shape)

    return add


def detached(additions: Additions) -> Additions:
    """The same values as leaves of their own, by which gradients can be asked for."""

    def leaf(tensor: Tensor) -> Any:
        return tensor.detach().requires_grad_()

    return {
        block: {name: LowRank(leaf(each.inner_RI), leaf(each.outer_OR)) for name, each in within.items()}
        for block, within in additions.items()
    }


def factors(additions: Additions) -> list[Tensor]:
    """All tensors, in a fixed order: by block, then name, the inner one first."""
    return [
        tensor
        for block in sorted(additions)
        for name in sorted(additions[block])
        for tensor in (additions[block][name].inner_RI, additions[block][name].outer_OR)
    ]


def like(additions: Additions, tensors: Sequence[torch.Tensor]) -> Additions:
    """The tensors in the places of `factors`."""
    given = iter(tensors)
    return {
        block: {name: LowRank(next(given), next(given)) for name in sorted(additions[block])}
        for block in sorted(additions)
    }
