"""`farflung journal verify --remeasure`: a share of a journal's entries, measured again on its model and data."""

import random
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoTokenizer

from farflung.apps.finetune.materials import measured_data
from farflung.apps.finetune.run_file import FINETUNE
from farflung.apps.journal.base import load_base
from farflung.systems.onebyte.edit import name_of
from farflung.systems.onebyte.journal import JournalSection
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.remeasuring import Compared, remeasured
from farflung.systems.onebyte.replay import require_base

OPPOSED_SHARE_MAX = 0.25
"""Of large entries: honest machines of other kinds differ in fewer, and who turns signs in far more."""


def remeasure_journal(sections: Sequence[JournalSection], base: str, run_file: Path, share: float) -> None:
    """Print how each participant's entries compare.

    `run_file`: of the run, whose data and objective are measured.

    Raises:
        ValueError: nothing can be measured, or the large entries of somebody have other signs.
    """
    if not 0 < share <= 1:
        raise ValueError(f"--remeasure is {share:g}: give the share of entries to measure, above 0 and at most 1")
    for section in sections:
        found = _remeasured(section, base, run_file, share)
        names = {number: name_of(section.ledger.participants[number]) for number in sorted(found)}
        _show(section, {names[number]: found[number] for number in names})
        wrong = {
            names[number]: each
            for number, each in found.items()
            if each.num_opposed > OPPOSED_SHARE_MAX * max(each.num_large, 1)
        }
        if wrong:
            shares = ", ".join(f"{name} {each.num_opposed} of {each.num_large}" for name, each in wrong.items())
            raise ValueError(
                f"measured again, large entries have other signs: {shares}. Take them out with farflung journal "
                f"revoke, if {run_file} has the data that the run was measured on"
            )


def _remeasured(section: JournalSection, base: str, run_file: Path, share: float) -> dict[int, Compared]:
    header, run = section.header, FINETUNE.load(run_file)
    model = load_base(base, header.dtype, header.quantised_as)
    require_base(header, dict(model.named_parameters()))
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError):
        raise ValueError(f"{base} has no tokenizer: give the folder that the run was made with") from None
    objective, batch_of = measured_data(run, tokenizer, model)
    learner = ModelLearner(header, model, objective, batch_of)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring again", total=section.ledger.num_rounds)
        return remeasured(section, learner, share, random.SystemRandom().random, lambda number: progress.advance(task))


def _show(section: JournalSection, found: dict[str, Compared]) -> None:
    table = Table("participant", "entries measured again", "the same byte", "large ones", "of these with another sign")
    for name, each in found.items():
        table.add_row(name, *map(str, (each.num_measured, each.num_equal, each.num_large, each.num_opposed)))
    console = Console()
    console.print(f"run {section.header.run_name}", highlight=False)
    console.print(table)
