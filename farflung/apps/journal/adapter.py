"""A journal's update as a low-rank adapter that peft loads.

An update is a sum of as many rank-one matrices as there are entries. The best matrices of a chosen rank come from its
singular values, so that the share that is left out is known exactly and is told. Embeddings get an adapter too, and a
head that shares their weights another with the same update; norms, which are small, travel whole (`modules_to_save`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from transformers.pytorch_utils import Conv1D

from farflung.systems.onebyte.edit import update_of
from farflung.systems.onebyte.journal import JournalSection
from farflung.systems.onebyte.replay import tensor_names

PREFIX = "base_model.model."
"""What peft puts before a model's own names."""
RANK_TOLERANCE = 1e-9
"""Singular values below this share of the largest are what rounding leaves of 0."""


@dataclass(slots=True)
class Adapter:
    """What becomes the two files of an adapter's folder."""

    rank: int
    base_name: str
    tensors: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    adapted: list[str] = field(default_factory=list[str])
    saved: list[str] = field(default_factory=list[str])
    """Modules that travel whole."""
    has_transposed: bool = False
    whole: float = 0.0
    """Squared norm of the update's matrices."""
    kept: float = 0.0
    """Of what the adapter holds of them."""
    rank_needed: int = 0
    """With which it would hold all."""

    @property
    def error(self) -> float:
        """Norm of what is left out over that of the update's matrices."""
        return (max(self.whole - self.kept, 0.0) / self.whole) ** 0.5 if self.whole else 0.0

    def write(self, folder: Path) -> None:
        """Write both files."""
        (folder / "adapter_model.safetensors").write_bytes(save(self.tensors))
        (folder / "adapter_config.json").write_text(json.dumps(self._config(), indent=1), encoding="utf-8")

    def add_matrix(self, update: torch.Tensor, modules: Mapping[str, nn.Module]) -> None:
        """Adapt all these modules, which share one weight, by the best matrices for `update`, float64."""
        left, values, right = torch.linalg.svd(update, full_matrices=False)
        used = min(self.rank, len(values))
        self.whole += float(values.square().sum())
        self.kept += float(values[:used].square().sum())
        self.rank_needed = max(self.rank_needed, int((values > RANK_TOLERANCE * values[0]).sum()))
        # Both factors alike in size, so that neither loses more where it is stored in fewer bits.
        roots = values[:used].sqrt()
        tall, wide = left[:, :used] * roots, roots[:, None] * right[:used]
        for name, module in modules.items():
            is_transposed = isinstance(module, nn.Embedding | Conv1D)
            outer, inner = (wide.t(), tall.t()) if is_transposed else (tall, wide)
            form = "lora_embedding_{}" if isinstance(module, nn.Embedding) else "lora_{}.weight"
            self.tensors[f"{PREFIX}{name}.{form.format('A')}"] = _padded(inner, self.rank, 0)
            self.tensors[f"{PREFIX}{name}.{form.format('B')}"] = _padded(outer, self.rank, 1)
            self.adapted.append(name)
            self.has_transposed |= isinstance(module, Conv1D)

    def _config(self) -> dict[str, object]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_name,
            "target_modules": self.adapted,
            "modules_to_save": self.saved or None,
            "r": self.rank,
            "lora_alpha": self.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.has_transposed,
            "inference_mode": True,
        }


def adapter_of(sections: list[JournalSection], model: nn.Module, rank: int) -> Adapter:
    """The adapter for a base model's journal.

    Raises:
        ValueError: it tunes something that adapters cannot hold.
    """
    adapter = Adapter(rank, sections[0].header.base_name)
    parameters = dict(model.named_parameters())
    for name in tensor_names(sections):
        update = update_of(sections, name)
        assert update is not None, "one of the runs tunes it"
        users = dict(_users(model, parameters[name]))
        if (
            all(isinstance(module, nn.Linear | nn.Embedding | Conv1D) for module in users.values())
            and update.dim() == 2
        ):
            adapter.add_matrix(update, users)
        else:
            _save_whole(adapter, name, parameters[name], update, users)
    if not adapter.adapted:
        raise ValueError("the journal tunes no matrix, and an adapter without one is none: --format update holds it")
    return adapter


def _users(model: nn.Module, parameter: torch.Tensor) -> Iterable[tuple[str, nn.Module]]:
    """The modules that have this parameter as their own."""
    for path, module in model.named_modules():
        if any(own is parameter for own in module._parameters.values()):
            yield path, module


def _save_whole(
    adapter: Adapter, name: str, parameter: torch.Tensor, update: torch.Tensor, users: Mapping[str, nn.Module]
) -> None:
    """A norm: the module's one tensor as the tune has it."""
    for path, module in users.items():
        if len(list(module.parameters(recurse=False))) != 1 or isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            raise ValueError(
                f"{name} is neither a matrix of a layer nor all that a norm has, and adapters hold nothing else: "
                f"--format update holds everything"
            )
        tuned = (parameter.detach().double() + update).to(parameter.dtype)
        adapter.tensors[f"{PREFIX}{path}.{name.rpartition('.')[2]}"] = tuned.contiguous()
        adapter.saved.append(path)


def _padded(matrix: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    missing = list(matrix.shape)
    missing[axis] = rank - matrix.shape[axis]
    return torch.cat((matrix, matrix.new_zeros(missing)), axis).float().contiguous()
