"""What a fine-tuning run leaves: its journal, checked, and the model that it stands for."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from farflung.apps.finetune.accuracy import Score, score
from farflung.apps.finetune.charter import JOURNAL_FILE
from farflung.apps.finetune.materials import TuningMaterials
from farflung.runtime.store import write_durably
from farflung.systems.onebyte.journal import read_journal
from farflung.systems.onebyte.replay import replay


@dataclass(frozen=True, slots=True)
class Tuned:
    """The journal's model, as anybody makes it from the file."""

    path: Path
    model: Any
    state: bytes
    """Hash of its sums: that of every worker."""
    num_rounds: int
    num_full_rounds: int
    """That hold anything."""
    num_entries: int
    before: Score
    after: Score


def tuned_model(folder: Path, materials: TuningMaterials, journal: bytes) -> Tuned:
    """Write the journal, read it back with all checks, and replay it over the base model.

    Raises:
        ValueError: the disk does not take it.
    """
    path = folder / JOURNAL_FILE
    try:
        write_durably(path, journal, mode=0o644)
    except OSError as error:
        raise ValueError(f"the journal cannot be written to {path} ({error.strerror}): make room there") from None
    sections = read_journal(BytesIO(journal), name=str(path))
    model, task = materials.model.eval(), materials.task
    before = score(model, task.objective, materials.held_out)
    state = replay(sections, dict(model.named_parameters()))
    after = score(model, task.objective, materials.held_out)
    ledger = sections[0].ledger
    return Tuned(path, model, state, ledger.num_rounds, ledger.num_full_rounds, ledger.num_entries, before, after)
