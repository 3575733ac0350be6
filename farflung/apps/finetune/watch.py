"""What watches a run that is done in the process of the command: it scores, reports, keeps, and stops when asked to."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open

from farflung.apps.finetune.accuracy import Score, score
from farflung.apps.finetune.baselines.plan import Kept, Progress
from farflung.apps.finetune.labelled import TuningTask
from farflung.apps.finetune.rows import Rows
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.runs.messages import SeatReport
from farflung.runtime.store import sync_folder

STATE_FILE = "state.safetensors"
KEEP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class TunedAlone:
    """What such a run has come to."""

    model: Any
    before: Score
    after: Score
    progress: Progress | Kept
    """The last."""


class Stopped(Exception):
    """The user has asked it to."""


class Watch:
    """Hears of every round."""

    def __init__(
        self,
        run: FinetuneRun,
        task: TuningTask,
        held_out: Rows,
        folder: Path,
        kept: Kept | None,
        tell: Callable[[SeatReport], object],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._run = run
        self._objective = task.objective
        self._held_out = held_out.first(run.training.evaluation_examples)
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
            self._report(0, before.loss, {}, {})

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
        self._report(number, loss, counters, {"training loss": progress.loss})
        must_stop = self._is_stopping()
        if is_last or must_stop or time.monotonic() - self._kept_at >= KEEP_SECONDS:
            self.keep()
        if must_stop and not is_last:
            raise Stopped

    def keep(self) -> None:
        """Write what is needed to go on from the last round."""
        if isinstance(self.last, Progress):
            write_kept(self._path, self.last)
            self._kept_at = time.monotonic()

    def _report(self, round_number: int, loss: float | None, counters: dict[str, int], more: dict[str, float]) -> None:
        values = {"round": float(round_number), "bytes": float(counters.get("bytes", 0)), **more}
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
