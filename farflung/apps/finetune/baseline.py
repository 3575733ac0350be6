"""A baseline as a run: it tunes in the process of the command, and keeps now and then how far it has come."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from farflung.apps.finetune.accuracy import score
from farflung.apps.finetune.baselines import adam, fedavg_lora, mezo
from farflung.apps.finetune.baselines.plan import Kept, Plan, Tell
from farflung.apps.finetune.baselines.settings import AdamSettings, FedAvgLoraSettings, MezoSettings
from farflung.apps.finetune.materials import TuningMaterials
from farflung.apps.finetune.method import OneByteSettings
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.swarm.settings import SwarmSettings
from farflung.apps.finetune.watch import STATE_FILE, Stopped, TunedAlone, Watch, read_kept
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.seats import WORKER, Seat


class Baseline:
    """See `runs.lone.LoneWork`."""

    def __init__(self, run: FinetuneRun) -> None:
        self.seat = Seat(index=0, kind=WORKER, region=run.regions[0].name)
        self._kept: Kept | None = None

    def prepare(self, folder: Path, run: FinetuneRun, *, is_resumed: bool) -> bool:
        path = folder / STATE_FILE
        self._kept = read_kept(path) if is_resumed and path.exists() else None
        return self._kept is not None

    def work(
        self,
        run: FinetuneRun,
        materials: TuningMaterials,
        folder: Path,
        tell: Callable[[SeatReport], object],
        is_stopping: Callable[[], bool],
    ) -> TunedAlone | None:
        model = materials.on_device(materials.model)
        objective, held_out = materials.task.objective, materials.held_out
        before = score(model, objective, held_out)
        watch = Watch(run, materials.task, held_out, folder, self._kept, tell, is_stopping)
        watch.begin(before)
        try:
            tuned = _tune(run, materials, model, watch.hear, self._kept)
        except Stopped:
            return None
        if isinstance(run.method, FedAvgLoraSettings):
            tuned = tuned.merge_and_unload()
        last = watch.last
        assert last is not None, "a run has rounds"
        return TunedAlone(tuned, before, score(tuned, objective, held_out), last)


def _tune(run: FinetuneRun, materials: TuningMaterials, model: Any, hear: Tell, kept: Kept | None) -> Any:
    plan, task = plan_of(run), materials.task
    match run.method:
        case MezoSettings() as settings:
            return mezo.tune(model, task, plan, settings, hear, kept)
        case AdamSettings() as settings:
            return adam.tune(model, task, plan, settings, hear, kept)
        case FedAvgLoraSettings() as settings:
            return fedavg_lora.tune(model, task, plan, settings, hear, kept)
        case OneByteSettings() | SwarmSettings():
            raise AssertionError("not a baseline")


def plan_of(run: FinetuneRun) -> Plan:
    """The same batches as those of other methods in runs of the same seed."""
    return Plan(
        num_rounds=run.training.rounds,
        batch_size=run.training.batch_size,
        seed=f"{run.run.seed}:data",
        tensors=run.model.tensors,
    )


def check(run: FinetuneRun, materials: TuningMaterials) -> None:
    """Whether the method can work on this model and data, before anything is computed.

    Raises:
        ValueError: it cannot.
    """
    if isinstance(run.method, FedAvgLoraSettings):
        fedavg_lora.check(materials.model, materials.task, plan_of(run), run.method)
    needs_gradient = isinstance(run.method, AdamSettings | FedAvgLoraSettings)
    if needs_gradient and run.objective is not None and run.objective.kind == "reward":
        raise ValueError(adam.NO_GRADIENT)
