"""Alignment as a kind of run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from farflung.apps.align.engine import TRAINER, AlignmentEngine
from farflung.apps.align.materials import Materials
from farflung.apps.align.progress import StepBar
from farflung.apps.align.result import evaluation, load_result, save_result, write_policy
from farflung.apps.align.run_file import ALIGN, KIND, RunFile
from farflung.apps.runs.engine import Engine
from farflung.apps.runs.group import Group
from farflung.apps.runs.history import History
from farflung.apps.runs.job import Bars, Ended, refuse_own_data
from farflung.apps.runs.result import write_plot, write_summary
from farflung.apps.runs.seats import Seat
from farflung.learn.parameters import Tensors


class Alignment:
    """See `runs.job.Job`."""

    name = KIND
    form = ALIGN
    budget = ("training", "steps")
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
        if seat.kind != TRAINER:
            raise ValueError(f"{seat.name} is one process: leave out --ranks, and let more workers join")
        from farflung.apps.align.group_learner import GroupLearner

        materials = Materials.gather(run)
        return replace(materials, group_learner=GroupLearner(group, materials))

    def engine(self, run: RunFile) -> Engine[RunFile, Materials]:
        return AlignmentEngine(run)

    def lone(self, run: RunFile) -> None:
        return None

    def charter(self, run: RunFile, materials: Materials, seat: Seat, folder: Path | None) -> bytes:
        return b""

    def summary(self, run: RunFile, materials: Materials) -> str:
        num_trained = sum(tensor.numel() for tensor in materials.first_weights().values())
        training, config = run.training, run.conversation
        how = run.sync.mode if run.sync.mode != "async" else f"async, at most {config.staleness_max} steps stale"
        who = "in one process" if run.sync.mode == "colocated" else f"{run.num_workers} rollout workers"
        who += f", a trainer of {training.ranks} ranks" if training.ranks > 1 else ""
        return (
            f"{how}: {num_trained:,} parameters, {training.steps} steps of {training.prompts_per_step} prompts x "
            f"{training.answers_per_prompt} answers, {who}"
        )

    def bars(
        self, run: RunFile, materials: Materials, history: History, seats: Sequence[Seat], console: Console
    ) -> Bars:
        return StepBar(history, seats, run.training.steps, console)

    def keep(self, folder: Path, result: Tensors) -> None:
        save_result(folder, result)

    def kept(self, folder: Path) -> Tensors:
        return load_result(folder)

    def leave(self, ended: Ended[RunFile, Materials], console: Console) -> None:
        run, materials, history, folder = ended.run, ended.materials, ended.history, ended.folder
        before, _ = evaluation(materials, materials.first_weights(), version=0)
        after, samples = evaluation(materials, ended.result, version=run.training.steps)
        target = write_policy(folder, materials, ended.result)
        plot = write_plot(folder, history, f"{run.run.name}: {run.sync.mode}", ended.time_name)
        own = {"reward_before": before.reward, "pass_rate_before": before.passed_share}
        own |= {"reward": after.reward, "pass_rate": after.passed_share}
        write_summary(folder, own, history, ended.counters)
        for sample in samples:
            console.print(f"  {sample}", markup=False)
        console.print(
            f"pass rate {before.passed_share:.1%} before, {after.passed_share:.1%} now, over {after.num_answers} "
            f"answers to other prompts; {history.seconds:.0f} {ended.time_name}; plot: {plot}"
        )
        console.print(f"model: {target}; serve it with: [bold]farflung serve {target} --new-swarm[/bold]")
