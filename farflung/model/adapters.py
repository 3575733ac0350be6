"""LoRA adapters of a model's blocks (arXiv 2106.09685), as parameters that their owner keeps and tunes.

An adapter adds scale * B A to matrices of linear layers within blocks. Legend: R rank, I and O features of a layer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from farflung.model.cut import build_skeleton
from farflung.model.lowrank import Additions, LowRank, layers_within
from farflung.model.source import ModelSource

DEFAULT_TARGETS = ("q_proj", "v_proj")
ALL_LINEAR = "all-linear"
NAMES_SHOWN_MAX = 12


@dataclass(frozen=True, slots=True)
class BlockLayers:
    """The linear layers of a model's blocks."""

    path: str
    """The list of blocks within the model, such as `model.layers`."""
    sizes: tuple[Mapping[str, tuple[int, int]], ...]
    """Of each block: features that enter and leave, by the layer's name within the block."""
    is_transposed: bool
    """Whether the family stores its matrices the other way round (Conv1D)."""

    @staticmethod
    def of(source: ModelSource) -> "BlockLayers":
        """Of a model, without reading its weights. Raises ValueError for a family that cannot be cut."""
        skeleton = build_skeleton(source, source.dtype)
        path = next(name for name, module in skeleton.model.named_modules() if module is skeleton.layers)
        sizes = tuple(layers_within(block) for block in skeleton.layers)
        return BlockLayers(path, sizes, any(isinstance(module, Conv1D) for module in skeleton.layers.modules()))

    def matching(self, targets: Sequence[str] | str) -> list[tuple[int, str]]:
        """(block, layer) of the layers whose names end in one of `targets`, or all of them.

        Raises:
            ValueError: there are none of some name.
        """
        every = [(block, name) for block, sizes in enumerate(self.sizes) for name in sizes]
        if targets == ALL_LINEAR:
            return every
        wanted = [targets] if isinstance(targets, str) else list(targets)
        for target in wanted:
            if not any(_ends(name, target) for _, name in every):
                known = sorted({name for _, name in every})
                raise ValueError(
                    f"no linear layer of the blocks is called {target!r}: choose of "
                    f"{', '.join(known[:NAMES_SHOWN_MAX])}, or {ALL_LINEAR!r}"
                )
        return [(block, name) for block, name in every if any(_ends(name, target) for target in wanted)]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


class LoraAdapter(nn.Module):
    """The factors A [R, I] and B [O, R] of each adapted layer, float32."""

    def __init__(
        self,
        layers: BlockLayers,
        places: Sequence[tuple[int, str]],
        *,
        rank: int,
        alpha: float,
        is_rank_stabilized: bool = False,
    ) -> None:
        """Zeros for these (block, layer) places, which the model has; see `new` and `farflung.model.peft_files`."""
        super().__init__()
        if rank < 1:
            raise ValueError(f"a rank of {rank} adapts nothing: choose 1 or more")
        if not places:
            raise ValueError("an adapter without layers adapts nothing: name some")
        self.layers = layers
        self.places = sorted(places)
        self.rank = rank
        self.alpha = alpha
        self.is_rank_stabilized = is_rank_stabilized
        sizes = [layers.sizes[block][name] for block, name in self.places]
        self.inner = nn.ParameterList(nn.Parameter(torch.zeros(rank, width)) for width, _ in sizes)
        self.outer = nn.ParameterList(nn.Parameter(torch.zeros(width, rank)) for _, width in sizes)

    @classmethod
    def new(
        cls,
        source: ModelSource,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        targets: Sequence[str] | str = DEFAULT_TARGETS,
        is_rank_stabilized: bool = False,
        generator: torch.Generator | None = None,
    ) -> "LoraAdapter":
        """A fresh adapter, which changes nothing yet: A uniform as peft draws it, B zero. `targets`: ends of layers'
        names, or "all-linear".

        Raises:
            ValueError: the model has no layer of such a name, a rank below 1, a family that cannot be cut.
        """
        layers = BlockLayers.of(source)
        adapter = cls(layers, layers.matching(targets), rank=rank, alpha=alpha, is_rank_stabilized=is_rank_stabilized)
        for inner_RI in adapter.inner:
            nn.init.kaiming_uniform_(inner_RI, a=math.sqrt(5), generator=generator)
        return adapter

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied with (rank-stabilized: arXiv 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.is_rank_stabilized else self.rank)

    @property
    def is_trained(self) -> bool:
        """Whether any factor wants gradients."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def additions(self) -> Additions:
        """What is added in each block, as a differentiable function of the parameters."""
        added: dict[int, dict[str, LowRank]] = {block: {} for block in range(len(self.layers.sizes))}
        for (block, name), inner_RI, outer_OR in zip(self.places, self.inner, self.outer, strict=True):
            added[block][name] = LowRank(inner_RI, outer_OR * self.scale)
        return added

    def factors_of(self, block: int, name: str) -> tuple[Tensor, Tensor]:
        """A and B of one layer."""
        index = self.places.index((block, name))
        return self.inner[index], self.outer[index]
