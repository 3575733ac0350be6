"""`farflung journal export`: entries as JSON Lines, the update as safetensors, or a low-rank adapter."""

import json
from pathlib import Path

import torch
from safetensors.torch import save

from farflung.apps.journal.adapter import adapter_of
from farflung.apps.journal.base import load_base
from farflung.apps.journal.files import open_journal, require_new, save_bytes, save_folder
from farflung.systems.onebyte.code import coefficients, decode_projections
from farflung.systems.onebyte.edit import name_of, update_of
from farflung.systems.onebyte.journal import JournalSection
from farflung.systems.onebyte.replay import require_base, tensor_names

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
            # The mean of a shared slot is taken at its own round's rate, whenever an entry comes.
            counted = record.number if section.header.shared_slots is None else part.base_round
            for slot, (projection, coefficient) in enumerate(zip(projections, worth, strict=True), part.first_slot):
                entry = {
                    "run": section.header.run_name,
                    "round": record.number,
                    "base_round": part.base_round,
                    "slot": slot,
                    "participant": names[part.participant],
                    "projection": projection,
                    "coefficient": coefficient,
                    "rate": section.header.schedule.rate_of(counted),
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
    """A folder that peft loads, and how much of the update it leaves out."""
    if rank < 1:
        raise ValueError("--rank must be at least 1")
    if base is None:
        raise ValueError("an adapter names the layers of its base model: give it with --base")
    model = load_base(base, sections[0].header.dtype, sections[0].header.quantised_as)
    for section in sections:
        require_base(section.header, dict(model.named_parameters()))
    adapter = adapter_of(sections, model, rank)
    save_folder(output, adapter.write)
    if rank >= adapter.rank_needed:
        print(f"{output}: an adapter of rank {rank} that holds the whole update")
    else:
        print(
            f"{output}: an adapter of rank {rank} that leaves out {adapter.error:.1%} of the update (by norm); "
            f"--rank {adapter.rank_needed} holds all of it"
        )
