"""Pretraining as a kind of run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from farflung.apps.pretrain.engines import engine_of
from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.progress import TokenBars
from farflung.apps.pretrain.result import load_result, save_result, trained_model, validation_loss
from farflung.apps.pretrain.run_file import KIND, PRETRAIN, RunFile
from farflung.apps.runs.engine import Engine
from farflung.apps.runs.group import Group
from farflung.apps.runs.history import History
from farflung.apps.runs.job import Bars, Ended, refuse_own_data
from farflung.apps.runs.plot import terminal
from farflung.apps.runs.result import write_model, write_plot, write_summary
from farflung.apps.runs.seats import WORKER, Seat
from farflung.learn.parameters import Tensors


class Pretraining:
    """See `runs.job.Job`."""

    name = KIND
    form = PRETRAIN
    budget = ("training", "tokens")
    resume_options = ""

    def check_longer(self, before: RunFile, now: RunFile, folder: Path) -> None:
        pass  # any run can

    def gather(self, run: RunFile) -> Materials:
        materials = Materials.gather(run)
        materials.check()
        return materials

    def gather_for(self, run: RunFile, seat: Seat, group: Group | None, own_data: Path | None) -> Materials:
        refuse_own_data(own_data)
        if group is None:
            return Materials.gather(run)
        if seat.kind != WORKER:
            raise ValueError(f"{seat.name} is no worker, which alone may be several processes: leave out --ranks")
        from farflung.apps.pretrain.group_trainer import GroupTrainer

        materials = Materials.gather(run)
        return replace(materials, group_trainer=GroupTrainer(group, run, seat, materials))

    def engine(self, run: RunFile) -> Engine[RunFile, Materials]:
        return engine_of(run)

    def lone(self, run: RunFile) -> None:
        return None

    def charter(self, run: RunFile, materials: Materials, seat: Seat, folder: Path | None) -> bytes:
        return b""

    def summary(self, run: RunFile, materials: Materials) -> str:
        num_parameters = sum(tensor.numel() for tensor in materials.model().parameters())
        return (
            f"{run.algorithm.name}: {num_parameters:,} parameters, {run.training.tokens:,} tokens, {run.num_workers} "
            f"workers in {', '.join(region.name for region in run.regions)}"
        )

    def bars(
        self, run: RunFile, materials: Materials, history: History, seats: Sequence[Seat], console: Console
    ) -> Bars:
        return TokenBars(history, seats, run.training.tokens, console)

    def keep(self, folder: Path, result: Tensors) -> None:
        save_result(folder, result)

    def kept(self, folder: Path) -> Tensors:
        return load_result(folder)

    def leave(self, ended: Ended[RunFile, Materials], console: Console) -> None:
        run, materials, history, folder = ended.run, ended.materials, ended.history, ended.folder
        model = trained_model(materials, ended.result)
        loss = validation_loss(materials, model)
        target = write_model(folder, model, materials.tokenizer)
        plot = write_plot(folder, history, f"{run.run.name}: {run.algorithm.name}", ended.time_name)
        write_summary(folder, {"validation_loss": loss}, history, ended.counters)
        console.print(terminal(history, ended.time_name))
        console.print(
            f"validation loss {loss:.3f} after {history.num_tokens():,} tokens in {history.seconds:.0f} "
            f"{ended.time_name}; plot: {plot}"
        )
        console.print(f"model: {target}; serve it with: [bold]farflung serve {target} --new-swarm[/bold]")
