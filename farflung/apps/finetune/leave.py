"""The end of a fine-tuning run: files in its folder, and a few lines for the user."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from farflung.apps.finetune.accuracy import Score
from farflung.apps.finetune.materials import TuningMaterials
from farflung.apps.finetune.method import name_of
from farflung.apps.finetune.progress import gradient_bytes, privacy_words
from farflung.apps.finetune.result import tuned_model
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.runs.job import Ended
from farflung.apps.runs.plot import byte_text, terminal
from farflung.apps.runs.result import write_model, write_plot, write_summary

if TYPE_CHECKING:
    from farflung.apps.finetune.watch import TunedAlone

AnyEnded = Ended[FinetuneRun, TuningMaterials]
PASSES = ("forward_passes", "backward_passes")


def leave(ended: AnyEnded, console: Console) -> None:
    """Write journal, model, plot and summary, and say where they lie."""
    run, materials, history, folder = ended.run, ended.materials, ended.history, ended.folder
    tuned = tuned_model(folder, materials, ended.result)
    num_bytes_sent = sum(history.link_bytes.values())
    num_workers = len(history.newest())
    size = tuned.path.stat().st_size
    num_gradient_bytes = gradient_bytes(*materials.size, tuned.num_rounds, num_workers)
    own = {
        "bytes_sent": num_bytes_sent,
        "gradient_bytes": num_gradient_bytes,
        "state": tuned.state.hex(),
        "entries": tuned.num_entries,
        "journal_bytes": size,
        "slots": {point.seat: point.num_steps for point in history.newest()},
    }
    epsilons = {point.seat: point.values["epsilon"] for point in history.newest() if "epsilon" in point.values}
    if run.onebyte.privacy is not None:
        own |= {"epsilon": epsilons, "delta": run.onebyte.privacy.delta}
    plot = write_both(ended, tuned.num_rounds, tuned.before, tuned.after, own)
    console.print(terminal(history, ended.time_name))
    change = change_words(tuned.before, tuned.after)
    console.print(
        f"{tuned.num_rounds} rounds in {history.seconds:.0f} {ended.time_name}: {change}; "
        f"{byte_text(num_bytes_sent)} sent by all, where whole gradients in as many rounds would have been "
        f"{byte_text(num_gradient_bytes)}; plot: {plot}"
    )
    if tuned.num_full_rounds < run.training.rounds:
        console.print(_early_words(run))
    for point in history.newest():
        console.print(f"  {point.seat}: " + ", ".join([f"{point.num_steps:,} slots measured", *privacy_words(point)]))
    console.print(f"journal: {tuned.path}, {size:,} bytes, state {tuned.state.hex()[:16]}", soft_wrap=True)
    _leave_model(run, ended, tuned.model, console)


def leave_baseline(ended: AnyEnded, console: Console) -> None:
    """The same of a method that has no journal."""
    run, materials, history = ended.run, ended.materials, ended.history
    tuned: TunedAlone = ended.result
    name, num_rounds, num_bytes = name_of(run.method), tuned.progress.round_number, tuned.progress.num_bytes
    num_machines = num_machines_of(run)
    own = {
        "bytes_sent": num_bytes,
        "gradient_bytes": gradient_bytes(*materials.size, num_rounds, num_machines),
    }
    plot = write_both(ended, num_rounds, tuned.before, tuned.after, own)
    forwards, backwards = (_total(ended.counters, passes) for passes in PASSES)
    sent = "nothing to send" if num_machines == 1 else f"{byte_text(num_bytes)} between {num_machines} clients"
    console.print(terminal(history, ended.time_name))
    change = change_words(tuned.before, tuned.after)
    console.print(
        f"{num_rounds} rounds of {name} in {history.seconds:.0f} {ended.time_name}: {change}; {forwards:,} forward and "
        f"{backwards:,} backward passes over a batch, {sent}; plot: {plot}"
    )
    _leave_model(run, ended, tuned.model, console)


def _early_words(run: FinetuneRun) -> str:
    start = f"It ended before its {run.training.rounds} rounds, as"
    if run.onebyte.privacy is None:
        return f"{start} its journal had been closed already"
    return (
        f"{start} workers had spent their budgets of privacy and too few were left: a larger epsilon, more examples or "
        f"fewer slots go further"
    )


def num_machines_of(run: FinetuneRun) -> int:
    """That a baseline computes for."""
    return getattr(run.method, "num_clients", 1)


def write_both(
    ended: Ended[FinetuneRun, Any], num_rounds: int, before: Score, after: Score, own: Mapping[str, Any]
) -> str:
    """Summary and plot, whose place is returned; the first keys of the summary are the same for all methods."""
    name = name_of(ended.run.method)
    common = {
        "method": name,
        "rounds": num_rounds,
        "loss_before": before.loss,
        "loss": after.loss,
        "accuracy_before": before.accuracy,
        "accuracy": after.accuracy,
        **{passes: _total(ended.counters, passes) for passes in PASSES},
    }
    write_summary(ended.folder, {**common, **own}, ended.history, ended.counters)
    return str(write_plot(ended.folder, ended.history, f"{ended.run.run.name}: {name}", ended.time_name))


def _total(counters: Mapping[str, Mapping[str, int]], name: str) -> int:
    return sum(counts.get(name, 0) for counts in counters.values())


def _leave_model(run: FinetuneRun, ended: AnyEnded, model: Any, console: Console) -> None:
    if run.model.is_written:
        target = write_model(ended.folder, model, ended.materials.tokenizer)
        console.print(f"model: {target}; serve it with: [bold]farflung serve {target} --new-swarm[/bold]")


def change_words(before: Score, after: Score) -> str:
    change = f"loss {before.loss:.3f} -> {after.loss:.3f}"
    if before.accuracy is None or after.accuracy is None:
        return change
    return f"{change}, accuracy {before.accuracy:.1%} -> {after.accuracy:.1%} on {after.num_examples} examples"
