"""A worker's trainer as both engines ask for it, which also counts what the reports tell."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from farflung.apps.pretrain.run_file import RunFile
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.part import Sitting, sent_bytes
from farflung.learn.parameters import Tensors
from farflung.learn.trainer import Descended, Trainer
from farflung.world.doors import Compute

if TYPE_CHECKING:
    from farflung.apps.pretrain.group_trainer import GroupTrainer


class Learner:
    """Runs on the compute door, but for `take_loss` and the counts, which may be read at any time."""

    def __init__(self, trainer: "Trainer | GroupTrainer") -> None:
        self.trainer = trainer
        self.num_local_steps = 0
        """In this life of the process."""
        self.num_tokens = 0
        self._computed: list[Descended] = []
        self._losses: list[tuple[float, int]] = []

    @property
    def parameters(self) -> Tensors:
        """Live."""
        return self.trainer.parameters

    @property
    def moments(self) -> dict[str, Tensors]:
        """Live."""
        return self.trainer.optimizer.moments

    @property
    def num_steps(self) -> int:
        """Optimizer steps behind the moments."""
        return self.trainer.optimizer.num_steps

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        self.trainer.optimizer.num_steps = num_steps

    @property
    def cursor(self) -> dict[str, int]:
        """How far the data are read."""
        return self.trainer.stream.cursor

    def seek(self, cursor: Mapping[str, int]) -> None:
        """Go on reading from there."""
        self.trainer.stream.seek(cursor)

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Descended:
        """Local steps."""
        descended = self.trainer.run(num_steps, progress_of_step)
        self._computed.append(descended)
        return descended

    def compute_gradients(self) -> Descended:
        """Of the next batch."""
        before = self.trainer.num_tokens
        loss = self.trainer.compute_gradients()
        num_tokens = self.trainer.num_tokens - before
        descended = Descended(loss=loss, num_steps=1, num_tokens=num_tokens, gradient_norm=math.nan, num_skipped=0)
        self._computed.append(descended)
        return descended

    def apply(self, progress: float) -> None:
        """Step along the gradients that are there."""
        self.trainer.apply(self.trainer.schedule(progress))

    def take_loss(self) -> float | None:
        """Mean loss of the steps since it was last asked; None if there were none."""
        losses, self._losses = self._losses, []
        num_steps = sum(count for _, count in losses)
        return sum(loss * count for loss, count in losses) / num_steps if num_steps else None

    def reveal(self) -> None:
        """Tell from now on of what was computed so far."""
        computed, self._computed = self._computed, []
        for descended in computed:
            self.num_local_steps += descended.num_steps
            self.num_tokens += descended.num_tokens
            if math.isfinite(descended.loss):
                self._losses.append((descended.loss, descended.num_steps))


class RevealingCompute:
    """A compute door after whose jobs a learner's counts are told: on virtual time a job's result is there long before
    its end."""

    def __init__(self, compute: Compute, learner: Learner) -> None:
        self._compute = compute
        self._learner = learner

    def submit(
        self, done: Callable[[object], None], function: Callable[..., object], *arguments: object, seconds: float
    ) -> None:
        """As `Compute.submit`."""

        def reveal(result: object) -> None:
            self._learner.reveal()
            done(result)

        self._compute.submit(reveal, function, *arguments, seconds=seconds)


def worker_report(
    sitting: Sitting[RunFile], learner: Learner, waiting_seconds: float, decisions: tuple[str, ...] = ()
) -> SeatReport:
    """What any worker tells."""
    return SeatReport(
        seat=sitting.seat.index,
        num_steps=learner.num_local_steps,
        num_tokens=learner.num_tokens,
        loss=learner.take_loss(),
        waiting_seconds=waiting_seconds,
        sent=sent_bytes(sitting.world),
        decisions=decisions,
    )
