"""What the user reads before and after tuning through a swarm, and the summary that is left."""

from typing import TYPE_CHECKING

from rich.console import Console

from farflung.apps.finetune.leave import change_words, write_both
from farflung.apps.finetune.method import name_of
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.swarm.entry import Entry
from farflung.apps.finetune.swarm.materials import SwarmMaterials
from farflung.apps.finetune.swarm.own import num_head_values
from farflung.apps.finetune.swarm.saving import ADAPTER_FOLDER, DEEP_NAME
from farflung.apps.finetune.swarm.settings import LoraSettings, PromptSettings
from farflung.apps.runs.job import Ended
from farflung.apps.runs.plot import byte_text, terminal

if TYPE_CHECKING:
    from farflung.apps.finetune.watch import TunedAlone


def opening_words(run: FinetuneRun, materials: SwarmMaterials, entry: Entry) -> str:
    """What is trained, on what, and where the rest of the model is."""
    num_values, _ = materials.size
    num_servers = entry.num_local(run)
    where = "the swarm" if num_servers is None else f"{num_servers} block servers that are started here"
    return (
        f"{name_of(run.method)}: {num_values:,} values beside {materials.name} are trained here, its "
        f"{materials.source.num_blocks} blocks are held by {where} and stay as they are; "
        f"{run.training.rounds:,} rounds of {run.training.batch_size} rows out of {len(materials.task.train):,}"
    )


def leave(ended: Ended[FinetuneRun, SwarmMaterials], console: Console) -> None:
    """Write plot and summary, and say what the adapter is and how it is used."""
    run, materials, history = ended.run, ended.materials, ended.history
    tuned: TunedAlone = ended.result
    num_rounds, num_bytes = tuned.progress.round_number, tuned.progress.num_bytes
    own = {"bytes_sent": num_bytes, "gradient_bytes": 0, "parameters": materials.size[0]}
    plot = write_both(ended, num_rounds, tuned.before, tuned.after, own)
    console.print(terminal(history, ended.time_name))
    console.print(
        f"{num_rounds} rounds of {name_of(run.method)} in {history.seconds:.0f} {ended.time_name}: "
        f"{change_words(tuned.before, tuned.after)}; {byte_text(num_bytes)} between this machine and the blocks; "
        f"plot: {plot}"
    )
    folder = ended.folder / ADAPTER_FOLDER
    console.print(f"adapter: {folder}; {_use(run, materials)}", soft_wrap=True)
    if isinstance(run.method, LoraSettings) and not _has_head(run):
        console.print(f"  ask the swarm under it: farflung api --join TICKET --adapter NAME={folder}", soft_wrap=True)
    if isinstance(run.method, PromptSettings) and run.method.is_deep:
        console.print(
            f"  what is added at every block lies in {DEEP_NAME}.safetensors, for which peft has no form: "
            f"farflung.apps.finetune.swarm.saving.load_prompts reads it, set_deep_prompts of a swarm's model takes it",
            soft_wrap=True,
        )


def _has_head(run: FinetuneRun) -> bool:
    return run.objective is not None and run.objective.has_head


def _use(run: FinetuneRun, materials: SwarmMaterials) -> str:
    has_head = _has_head(run)
    family = "AutoModelForSequenceClassification" if has_head else "AutoModelForCausalLM"
    width = f", num_labels={num_head_values(materials.task)}" if has_head else ""
    return (
        f'in Python: peft.PeftModel.from_pretrained({family}.from_pretrained("{materials.source.location}"{width}), '
        f'"{ADAPTER_FOLDER}")'
    )
