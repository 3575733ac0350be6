"""A baseline as a run: it tunes in the process of the command, and keeps now and then how far it has come."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open

from farflung.apps.finetune.accuracy import Score, score
from farflung.apps.finetune.baselines import adam, fedavg_lora, mezo
from farflung.apps.finetune.baselines.plan import Kept, Plan, Progress, Tell
from farflung.apps.finetune.baselines.settings import AdamSettings, FedAvgLoraSettings, MezoSettings
from farflung.apps.finetune.materials import TuningMaterials
from farflung.apps.finetune.method import OneByteSettings
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.seats import WORKER, Seat
from farflung.runtime.store import sync_folder

STATE_FILE = "state.safetensors"
KEEP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class TunedAlone:
    """What a baseline has come to."""

    model: Any
    before: Score
    after: Score
    progress: Progress | Kept
    """The last."""


class _Stopped(Exception):
    """The user has asked it to."""


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
        watch = _Watch(run, materials, folder, self._kept, tell, is_stopping)
        watch.begin(before)
        try:
            tuned = _tune(run, materials, model, watch.hear, self._kept)
        except _Stopped:
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
        case OneByteSettings():
            raise AssertionError("it has an engine of its own")


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


class _Watch:
    """Hears of every round: scores, reports, keeps, and stops when asked to."""

    def __init__(
        self,
        run: FinetuneRun,
        materials: TuningMaterials,
        folder: Path,
        kept: Kept | None,
        tell: Callable[[SeatReport], object],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._run = run
        self._objective = materials.task.objective
        self._held_out = materials.held_out.first(run.training.evaluation_examples)
        self._path = folder / STATE_FILE
        self._first_round = kept.round_number if kept else 0
        self._tell = tell
        self._is_stopping = is_stopping
        self._kept_at = time.monotonic()
        self._accuracy: float | None = None
        self.last: Progress | Kept | None = kept

    def begin(self, before: Score) -> None:
        """How it was."""
        if not self._first_round:
            self._accuracy = before.accuracy
            self._report(0, before.loss, {})

    def hear(self, progress: Progress) -> None:
        """After a round."""
        self.last = progress
        number, every = progress.round_number, self._run.training.evaluation_rounds
        is_last = number == progress.num_rounds
        loss: float | None = None
        if is_last or number % every == 0:
            found = score(progress.model, self._objective, self._held_out)
            loss, self._accuracy = found.loss, found.accuracy
        counters = {
            "forward_passes": progress.num_forwards,
            "backward_passes": progress.num_backwards,
            "bytes": progress.num_bytes,
        }
        self._report(number, loss, counters)
        must_stop = self._is_stopping()
        if is_last or must_stop or time.monotonic() - self._kept_at >= KEEP_SECONDS:
            write_kept(self._path, progress)
            self._kept_at = time.monotonic()
        if must_stop and not is_last:
            raise _Stopped

    def _report(self, round_number: int, loss: float | None, counters: dict[str, int]) -> None:
        values = {"round": float(round_number), "bytes": float(counters.get("bytes", 0))}
        if self._accuracy is not None:
            values["accuracy"] = self._accuracy
        num_steps = round_number - self._first_round
        self._tell(SeatReport(seat=0, num_steps=num_steps, loss=loss, values=values, counters=counters))


def write_kept(path: Path, progress: Progress) -> None:
    """Replace what was kept before, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    # A tensor that shares memory with another cannot be written.
    state = {name: tensor.contiguous().clone() for name, tensor in progress.state().items()}
    described = {"round": str(progress.round_number), "bytes": str(progress.num_bytes)}
    safetensors.torch.save_file(state, unfinished, described)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def read_kept(path: Path) -> Kept:
    """What `write_kept` wrote.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            described = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        return Kept(round_number=int(described["round"]), num_bytes=int(described["bytes"]), state=state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and the run begins anew") from None
