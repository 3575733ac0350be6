"""What the engine asks of whatever learns: a trainer of a language model, or a test's quadratic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from farflung.learn import learner
from farflung.learn.learner import Descended
from farflung.learn.parameters import Tensors
from farflung.learn.trainer import Trainer


class Learner(learner.Learner, Protocol):
    """One replica."""

    @property
    def moments(self) -> dict[str, Tensors]:
        """Live optimizer moments by name (`first_moment`, `second_moment` ...), from the first step on."""
        ...

    @property
    def num_steps(self) -> int:
        """Optimizer steps so far, which bias corrections count."""
        ...

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None: ...


class GradientLearner(Learner, Protocol):
    """A replica whose step can be taken in two halves, with an average between them."""

    def compute_gradients(self) -> Descended:
        """Of the next batch, into the `.grad` of the parameters."""
        ...

    def apply(self, progress: float) -> None:
        """Step on the gradients that are there."""
        ...


@dataclass(frozen=True, slots=True)
class GradientStep:
    """One gradient."""

    loss: float
    num_tokens: int
    num_steps: int = 1


class TrainerLearner:
    """A `Trainer` as a learner."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @property
    def parameters(self) -> Tensors:
        """Those of the model."""
        return self.trainer.parameters

    @property
    def moments(self) -> dict[str, Tensors]:
        """Those of its optimizer."""
        return self.trainer.optimizer.moments

    @property
    def num_steps(self) -> int:
        """Steps of its optimizer."""
        return self.trainer.optimizer.num_steps

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        self.trainer.optimizer.num_steps = num_steps

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Descended:
        """As `Trainer.run`."""
        return self.trainer.run(num_steps, progress_of_step)

    def compute_gradients(self) -> GradientStep:
        """As `Trainer.compute_gradients`."""
        before = self.trainer.num_tokens
        loss = self.trainer.compute_gradients()
        return GradientStep(loss, self.trainer.num_tokens - before)

    def apply(self, progress: float) -> None:
        """Step with the schedule's learning rate at `progress`."""
        self.trainer.apply(self.trainer.schedule(progress))
