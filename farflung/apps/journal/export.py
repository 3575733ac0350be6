"""`farflung journal export`: entries as JSON Lines, the update as safetensors, or a low-rank adapter."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from farflung.apps.journal.base import load_base
from farflung.apps.journal.files import open_journal, require_new, save_bytes, save_folder
from farflung.systems.onebyte.code import coefficients, decode_projections
from farflung.systems.onebyte.edit import name_of, update_of
from farflung.systems.onebyte.journal import JournalSection
from farflung.systems.onebyte.replay import tensor_names

FORMS = ("entries", "update", "adapter")


def export_journal(
    path: Path, output: Path, form: str, *, rank: int, base: str | None, is_unfinished_allowed: bool
) -> None:
    """Write a journal in another form.

    Raises:
        ValueError: an unknown form, a damaged journal, an adapter that cannot be, or no place to write.
    """
    if form not in FORMS:
        raise ValueError(f"--format must be one of {', '.join(FORMS)}, not {form!r}")
    require_new(output)
    sections = open_journal(path, is_unfinished_allowed=is_unfinished_allowed)
    if form == "adapter":
        _export_adapter(sections, output, rank, base)
        return
    content = {"entries": _entries, "update": _update}[form](sections)
    save_bytes(output, content)
    print(f"{output}: {len(content):,} bytes")


def _entries(sections: list[JournalSection]) -> bytes:
    """One line per entry that counts: where it belongs, what was measured, what it is worth."""
    lines: list[str] = []
    for section in sections:
        names = [name_of(each) for each in section.ledger.participants]
        for record, part in section.counted():
            projections = decode_projections(part.codes, section.header.code_exponent_min)
            worth = coefficients(part.codes, record.reference, section.header.coefficient_max).tolist()
            for slot, (projection, coefficient) in enumerate(zip(projections, worth, strict=True), part.first_slot):
                entry = {
                    "run": section.header.run_name,
                    "round": record.number,
                    "base_round": part.base_round,
                    "slot": slot,
                    "participant": names[part.participant],
                    "projection": projection,
                    "coefficient": coefficient,
                    "rate": section.header.schedule.rate_of(record.number),
                }
                lines.append(json.dumps(entry))
    return ("\n".join(lines) + "\n").encode() if lines else b""


def _update(sections: list[JournalSection]) -> bytes:
    """What is added to the base's tensors, float32."""
    return save({name: _moved(sections, name).float() for name in tensor_names(sections)})


def _moved(sections: list[JournalSection], name: str) -> torch.Tensor:
    update = update_of(sections, name)
    assert update is not None, "one of the runs tunes it"
    return update


def _export_adapter(sections: list[JournalSection], output: Path, rank: int, base: str | None) -> None:
    """A folder that peft loads: the best matrices of that rank, and how much of the update they hold."""
    if rank < 1:
        raise ValueError("--rank must be at least 1")
    if base is None:
        raise ValueError("an adapter names the layers of its base model: give it with --base")
    modules = dict(load_base(base, sections[0].header.dtype).named_modules())
    matrices: dict[str, torch.Tensor] = {}
    kept, whole = 0.0, 0.0
    for name in tensor_names(sections):
        layer = name.removesuffix(".weight")
        if not isinstance(modules.get(layer), nn.Linear) or layer == name:
            raise ValueError(f"{name} is no linear layer's weight, and adapters hold only those: export the update")
        update = _moved(sections, name)
        left, values, right = torch.linalg.svd(update, full_matrices=False)
        used = min(rank, len(values))
        matrices[f"base_model.model.{layer}.lora_A.weight"] = _padded(right[:used], rank, 0)
        matrices[f"base_model.model.{layer}.lora_B.weight"] = _padded(left[:, :used] * values[:used], rank, 1)
        kept, whole = kept + float(values[:used].square().sum()), whole + float(values.square().sum())
    layers = [name.removesuffix(".weight") for name in tensor_names(sections)]
    save_folder(output, _writer(matrices, _adapter_config(layers, rank, sections[0].header.base_name)))
    share = kept / whole if whole else 1.0
    print(f"{output}: an adapter of rank {rank} that holds {share:.1%} of the update (by squared norm)")


def _padded(matrix: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    missing = list(matrix.shape)
    missing[axis] = rank - matrix.shape[axis]
    return torch.cat((matrix, matrix.new_zeros(missing)), axis).float().contiguous()


def _adapter_config(layers: list[str], rank: int, base_name: str) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "target_modules": layers,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _writer(matrices: dict[str, torch.Tensor], config: dict[str, object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(save(matrices))
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")

    return write
