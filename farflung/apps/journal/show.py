"""`farflung journal show` and `verify`: what a journal is about, who contributed what, and that all of it is right."""

import json
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from farflung.apps.journal.files import open_journal
from farflung.systems.onebyte.edit import name_of
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.journal import JournalSection
from farflung.systems.onebyte.records import Summed, signed_parts
from farflung.systems.onebyte.replay import require_base

NAMES_SHOWN_MAX = 4


def verify_journal(
    path: Path,
    base: str | None,
    *,
    remeasured_share: float | None = None,
    run_file: Path | None = None,
    is_unfinished_allowed: bool,
) -> None:
    """Check a journal, with `base` that it is about that model, and with a share that entries are what is measured.

    Raises:
        ValueError: what is wrong, and where.
    """
    if remeasured_share is not None and (base is None or run_file is None):
        raise ValueError("--remeasure needs --base, the model, and --data, the run file with data and objective")
    sections = open_journal(path, is_unfinished_allowed=is_unfinished_allowed)
    if base is not None:
        from farflung.apps.journal.base import load_base  # transformers takes seconds, and hashes need none of it

        model = load_base(base, sections[0].header.dtype, sections[0].header.quantised_as)
        for section in sections:
            require_base(section.header, dict(model.named_parameters()))
    if remeasured_share is not None and base is not None and run_file is not None:
        from farflung.apps.journal.remeasure import remeasure_journal

        remeasure_journal(sections, base, run_file, remeasured_share)
    for section in sections:
        ledger = section.ledger
        print(
            f"run {section.header.run_name}: {ledger.num_rounds} rounds, {ledger.num_entries} entries, "
            f"{_signed(section)}; chain {section.chain.hex()}"
        )
    print(f"{path} is right{' and is about this model' if base is not None else ''}.")


def _signed(section: JournalSection) -> str:
    unsigned, vouched = section.ledger.unsigned(), section.ledger.num_vouched
    if not unsigned:
        signed = "all signed" if not vouched else f"{vouched} of them on the sequencer's word alone, the rest signed"
        return signed + ("" if section.ledger.is_closed else ", not closed yet")
    names = ", ".join(name_of(section.ledger.participants[number]) for number in unsigned)
    return f"not closed yet, the last entries of {names} not signed yet"


def show_journal(path: Path, *, as_json: bool, is_unfinished_allowed: bool) -> None:
    """Print what a journal holds.

    Raises:
        ValueError: it is damaged.
    """
    sections = open_journal(path, is_unfinished_allowed=is_unfinished_allowed)
    if as_json:
        print(json.dumps([_described(section) for section in sections], indent=1))
        return
    console = Console()
    console.print(f"{path.name}: {path.stat().st_size:,} bytes", highlight=False)
    for section in sections:
        _show_section(console, section)


def _show_section(console: Console, section: JournalSection) -> None:
    described = _described(section)
    participants = described.pop("participants")
    described["revocations"] = len(described["revocations"])
    described["tensors"] = _shortened(described["tensors"])
    settings = Table("run", described.pop("run"), show_header=True)
    for name, value in described.items():
        settings.add_row(name.replace("_", " "), str(value))
    console.print(settings)
    table = Table("participant", "peer", "entries", "rounds", "revoked")
    for each in participants:
        table.add_row(*(str(each[name]) for name in ("name", "peer", "entries", "rounds", "entries_revoked")))
    console.print(table)


def _shortened(tensors: list[str]) -> str:
    shown = ", ".join(tensors[:NAMES_SHOWN_MAX])
    return f"{shown} and {len(tensors) - NAMES_SHOWN_MAX} more" if len(tensors) > NAMES_SHOWN_MAX else shown


def _described(section: JournalSection) -> dict[str, Any]:
    header, ledger = section.header, section.ledger
    return {
        "run": header.run_name,
        "base": header.base_name,
        "base_hash": header.base.hex(),
        "dtype": header.dtype,
        "quantisation": header.quantised_as,
        "tensors": [tensor.name for tensor in header.tensors],
        "parameters": sum(tensor.num_elements for tensor in header.tensors),
        "direction": header.direction,
        "generator": header.generator,
        "epsilon": header.epsilon,
        "exponent": header.exponent,
        "schedule": f"{header.schedule.kind}, {header.schedule.rate}",
        "slots_per_round": header.num_slots,
        "data": _data(header),
        "rounds": ledger.num_rounds,
        "rounds_skipped": section.num_rounds_skipped,
        "entries": ledger.num_entries,
        "entries_vouched": ledger.num_vouched,
        "closed": ledger.is_closed,
        "chain": section.chain.hex(),
        "revocations": [msgspec.structs.asdict(revocation) for revocation in ledger.revocations],
        "participants": [_participant(section, number) for number in range(len(ledger.participants))],
    }


def _data(header: Header) -> str:
    shared = header.shared_slots
    if shared is None:
        return "one for all"
    mean = f"mean without {shared.trimmed_percent} % at either end" if shared.trimmed_percent else "mean"
    noise = shared.privacy
    return ", ".join(
        (
            f"private, {mean} over participants",
            *(["sums under masks"] if shared.is_masked else []),
            *([f"noise of {noise.noise_multiplier:g} times the clip {noise.clip:g}"] if noise is not None else []),
        )
    )


def _participant(section: JournalSection, number: int) -> dict[str, Any]:
    mine = [
        (record.number, section.header.num_slots if isinstance(record, Summed) else len(part.codes))
        for record in section.rounds
        for part in signed_parts(record)
        if part.participant == number
    ]
    revoked = sum(size for committed, size in mine if section.ledger.is_revoked(number, committed))
    return {
        "name": name_of(section.ledger.participants[number]),
        "peer": section.ledger.peer_of(number),
        "entries": sum(size for _, size in mine),
        "rounds": len({committed for committed, _ in mine}),
        "entries_revoked": revoked,
    }
