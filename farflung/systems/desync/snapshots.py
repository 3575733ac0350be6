"""What is kept of a replica at one moment: for a round, for what comes of it, and for a newcomer."""

from dataclasses import dataclass, field

import torch

from farflung.learn.parameters import Tensors
from farflung.systems.desync.data import Position


@dataclass(slots=True)
class Boundary:
    """Copies of what a learner is between two steps."""

    num_steps: int
    """The learner's."""
    states: dict[str, torch.Tensor]
    """[length] each: `parameters`, moments or `gradients`."""
    position: Position = field(default_factory=Position)
    """How far its data were read."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a replica brought to an exchange."""

    due: tuple[str, ...]
    values: torch.Tensor
    """[length]: agreed minus own parameters, own moments, or gradients, one after another."""
    residual: torch.Tensor
    """[length]: what lossy codecs left out there so far."""
    num_steps: int
    """The learner's, then."""
    position: Position
    """How far its data were read."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What an average that has landed means for one stretch of the replica."""

    state: str
    """`parameters`, a moment or `gradients`."""
    first: int
    target: torch.Tensor
    """What it becomes if no step was made since."""
    change: torch.Tensor
    """What is added otherwise."""
    num_steps: int
    """Of the learner when the averaged values were taken."""
    decay: float


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica at one moment, as another takes it over."""

    tensors: Tensors
    """By path, such as `moment/first_moment/wte`."""
    round: int
    num_credited: int
    first: int
    rule_steps: tuple[int, ...]
    """Of each fragment's rule."""
    num_steps: int
    """Of the optimizer."""
