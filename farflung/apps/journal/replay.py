"""`farflung journal replay`: base model and journal in, fine-tuned Hugging Face folder out."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from transformers import AutoTokenizer, PreTrainedModel

from farflung.apps.journal.base import load_base
from farflung.apps.journal.files import open_journal, require_new, save_folder
from farflung.systems.onebyte.replay import replay, tensor_names


def replay_journal(path: Path, base: str, output: Path, *, is_unfinished_allowed: bool) -> None:
    """Write the model that a journal stands for.

    Raises:
        ValueError: a damaged journal, another base model, or no place to write.
    """
    require_new(output)
    sections = open_journal(path, is_unfinished_allowed=is_unfinished_allowed)
    model = load_base(base, sections[0].header.dtype, sections[0].header.quantised_as)
    console = Console()
    began_at = time.monotonic()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("replaying", total=len(tensor_names(sections)))
        digest = replay(sections, dict(model.named_parameters()), lambda name: progress.advance(task))
    save_folder(output, lambda folder: _write(folder, model, base))
    num_entries = sum(section.ledger.num_entries for section in sections)
    console.print(f"{num_entries} entries replayed in {time.monotonic() - began_at:.1f} s; state {digest.hex()}")
    console.print(f"The model is in {output}.", soft_wrap=True)


def _write(folder: Path, model: PreTrainedModel, base: str) -> None:
    model.save_pretrained(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError):
        return  # the base has none; neither has the result
    tokenizer.save_pretrained(folder)
