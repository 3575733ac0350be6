"""What the first rank of a worker's group tells the others, who then do it with it."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from farflung.apps.pretrain.training import TrainingSettings
from farflung.apps.runs.group import Group
from farflung.apps.runs.sites import Parallelism

GRADIENTS = "gradients"
"""Name of the gradients among the states that are staged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Make the model and its optimizer."""

    config: PretrainedConfig
    training: TrainingSettings
    parallelism: Parallelism
    seed: str
    """Decides dropout, together with the rank."""

    def follow(self, group: Group) -> None:
        """As `runs.group.Begin`."""
        import torch
        from transformers import AutoModelForCausalLM

        from farflung.apps.pretrain.rank import RankTrainer

        # Any weights: those of the first rank come next.
        model = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32)
        trainer = RankTrainer(group, self, model, None)
        while isinstance(order := group.hear(), Order):
            trainer.perform(order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Something to compute."""

    changed: tuple[str, ...]
    """States that the engine has written to since the last order: every rank takes them over first."""
    num_steps: int
    """Of the optimizer, by the engine's count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Order):
    """Make local steps."""

    progress: tuple[float, ...]
    """Of the whole run, at each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeGradients(Order):
    """Of the next batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply(Order):
    """Step along the gradients that are there."""

    factor: float
    """Of the learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect(Order):
    """Show the first rank these states."""

    states: tuple[str, ...]
