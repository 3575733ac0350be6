"""How far a worker is: its report, its steps since the last snapshot, and where they are in the run's budget."""

from dataclasses import dataclass, field

import msgspec

from farflung.learn.learner import Descended
from farflung.systems.desync.messages import Assignment


@dataclass(slots=True)
class WorkerReport:
    """What a worker has done so far."""

    round: int = 0
    """Rounds of the run whose outcome it has."""
    loss: float = float("nan")
    """Mean over its steps before the newest round."""
    progress: float = 0.0
    """Share of the run's budget that is done."""
    num_steps: int = 0
    """Local steps, those of dropped rounds too."""
    num_tokens: int = 0
    num_bytes_sent: int = 0
    seconds: float = 0.0
    """Since it began."""
    seconds_waiting: float = 0.0
    """Of them, when its device had nothing to do."""
    num_members: int = 0
    """Of the newest round."""
    exchanges: dict[int, int] = field(default_factory=dict[int, int])
    """Number of the exchange with which each of its rounds was committed."""
    num_states_taken: int = 0
    """How often it took another's state: as a newcomer, or because the run had gone on without it."""
    has_result: bool = False
    """Whether it ended with the run's last parameters; else the run was over before it could take them."""


@dataclass(slots=True)
class Stretch:
    """Local steps since the last snapshot."""

    num_steps: int = 0
    num_tokens: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0

    def add(self, descended: Descended, seconds: float) -> None:
        """Count some steps."""
        self.num_steps += descended.num_steps
        self.num_tokens += descended.num_tokens
        self.loss_sum += descended.loss * descended.num_steps
        self.seconds += seconds

    @property
    def loss(self) -> float:
        """Mean over the steps."""
        return self.loss_sum / self.num_steps if self.num_steps else float("nan")


def progress_at(assignment: Assignment, step: int) -> float:
    """Share of the budget done after local step `step` (from 0) of an assignment, which may be made longer."""
    return min(1.0, _reached(assignment, step + 1))


def following(assignment: Assignment, num_steps: int) -> Assignment:
    """What one expects to come after `num_steps` steps of an assignment, until the coordinator has said it."""
    first = _reached(assignment, num_steps)
    last = first + assignment.progress_last - assignment.progress_first
    return msgspec.structs.replace(assignment, round=assignment.round + 1, progress_first=first, progress_last=last)


def _reached(assignment: Assignment, num_steps: int) -> float:
    """Share of the budget done after `num_steps` steps, if all others keep the assignment's pace."""
    share = num_steps / max(1, assignment.num_steps)
    return assignment.progress_first + share * (assignment.progress_last - assignment.progress_first)
