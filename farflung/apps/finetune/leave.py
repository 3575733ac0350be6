"""The end of a fine-tuning run: files in its folder, and a few lines for the user."""

from rich.console import Console

from farflung.apps.finetune.accuracy import Score
from farflung.apps.finetune.materials import TuningMaterials
from farflung.apps.finetune.progress import gradient_bytes
from farflung.apps.finetune.result import tuned_model
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.runs.job import Ended
from farflung.apps.runs.plot import byte_text, terminal
from farflung.apps.runs.result import write_model, write_plot, write_summary


def leave(ended: Ended[FinetuneRun, TuningMaterials], console: Console) -> None:
    """Write journal, model, plot and summary, and say where they lie."""
    run, materials, history, folder = ended.run, ended.materials, ended.history, ended.folder
    tuned = tuned_model(folder, materials, ended.result)
    plot = write_plot(folder, history, f"{run.run.name}: onebyte", ended.time_name)
    num_bytes_sent = sum(history.link_bytes.values())
    num_workers = len(history.newest())
    size = tuned.path.stat().st_size
    num_gradient_bytes = gradient_bytes(*materials.size, tuned.num_rounds, num_workers)
    own = {
        "method": "onebyte",
        "state": tuned.state.hex(),
        "rounds": tuned.num_rounds,
        "entries": tuned.num_entries,
        "journal_bytes": size,
        "loss_before": tuned.before.loss,
        "loss": tuned.after.loss,
        "accuracy_before": tuned.before.accuracy,
        "accuracy": tuned.after.accuracy,
        "bytes_sent": num_bytes_sent,
        "gradient_bytes": num_gradient_bytes,
        "slots": {point.seat: point.num_steps for point in history.newest()},
    }
    write_summary(folder, own, history, ended.counters)
    console.print(terminal(history, ended.time_name))
    console.print(
        f"{tuned.num_rounds} rounds in {history.seconds:.0f} {ended.time_name}: {_change(tuned.before, tuned.after)}; "
        f"{byte_text(num_bytes_sent)} sent by all, where whole gradients in as many rounds would have been "
        f"{byte_text(num_gradient_bytes)}; plot: {plot}"
    )
    for point in history.newest():
        console.print(f"  {point.seat}: {point.num_steps:,} slots measured")
    console.print(f"journal: {tuned.path}, {size:,} bytes, state {tuned.state.hex()[:16]}", soft_wrap=True)
    if run.model.is_written:
        target = write_model(folder, tuned.model, materials.tokenizer)
        console.print(f"model: {target}; serve it with: [bold]farflung serve {target} --new-swarm[/bold]")


def _change(before: Score, after: Score) -> str:
    change = f"loss {before.loss:.3f} -> {after.loss:.3f}"
    if before.accuracy is None or after.accuracy is None:
        return change
    return f"{change}, accuracy {before.accuracy:.1%} -> {after.accuracy:.1%} on {after.num_examples} examples"
