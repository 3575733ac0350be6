"""One replica between its local steps: what all have agreed on, what it brings to a mean, and how a mean is applied.

With overlap, local steps go on while a mean travels. Let x_s be the parameters of which the mean was taken, g what the
rule made of it and x those of now: then x becomes g + (x - x_s). A moment s with decay beta that was averaged k steps
ago becomes s + beta^k (mean - s_s), which is what it would be had the mean come at once. Without overlap both reduce to
g and the mean. All functions run on the compute door.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from farflung.learn.parameters import Tensors, assign_, copies, joined
from farflung.learn.rules import RuleState
from farflung.systems.desync.cadence import GRADIENTS, PARAMETERS
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.learner import Learner
from farflung.systems.desync.participation import Committed
from farflung.systems.desync.payload import flattened, lengths_of, unflattened


@dataclass(slots=True)
class Snapshot:
    """What a replica was when it arrived."""

    due: tuple[str, ...]
    values: torch.Tensor
    """[length]: agreed minus own parameters, own moments, or gradients, one after another."""
    parameters: Tensors = field(default_factory=dict[str, torch.Tensor])
    """x_s; only with overlap."""
    num_steps: int = 0
    """The learner's, then."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica at one moment."""

    tensors: Tensors
    """By path, such as `moment/first_moment/wte`."""
    round: int
    rule_step: int
    num_steps: int
    """Of the optimizer."""


class Replica:
    """A learner and what its run has agreed on."""

    def __init__(self, learner: Learner, config: DesyncConfig) -> None:
        self.learner = learner
        self._config = config
        self.lengths = lengths_of(learner)
        # Replicas whose gradients are averaged are equal at all times: their parameters are what is agreed.
        self.agreed: Tensors = learner.parameters if config.averages_gradients else copies(learner.parameters)
        """Parameters as of the last round that averaged them."""
        self.rule_state: RuleState = config.outer.init(self.agreed)
        is_lossy = config.codec != "raw" or config.site_codec != "raw"
        keeps_residual = is_lossy and config.feedback_decay > 0
        self.residual = torch.zeros(self.lengths[PARAMETERS] if keeps_residual else 0)
        """What lossy codecs have left out so far, in units of the mean."""
        self.round = 0
        """Rounds of the run whose outcome it has."""

    @torch.no_grad()
    def snapshot(self, due: tuple[str, ...]) -> Snapshot:
        """What this replica brings to an exchange."""
        values = torch.empty(sum(self.lengths[name] for name in due))
        first = 0
        for name in due:
            self._write(name, values[first : first + self.lengths[name]])
            first += self.lengths[name]
        is_kept = self._config.is_overlapped and PARAMETERS in due
        own = copies(self.learner.parameters) if is_kept else {}
        return Snapshot(due, values, own, self.learner.num_steps)

    def _write(self, name: str, out: torch.Tensor) -> None:
        if name == PARAMETERS:
            flattened(self.agreed, out)
            for own, view in self._pairs(self.learner.parameters, out):
                view.sub_(own.detach())
        elif name == GRADIENTS:
            gradients = {name: one.grad for name, one in self.learner.parameters.items() if one.grad is not None}
            assert gradients.keys() == self.learner.parameters.keys(), "a parameter has no gradient"
            flattened(gradients, out)
        else:
            flattened(self.learner.moments[name], out)

    @staticmethod
    def _pairs(tensors: Mapping[str, torch.Tensor], vector: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        views = unflattened(vector, tensors)
        return [(tensor, views[name]) for name, tensor in tensors.items()]

    @torch.no_grad()
    def apply(self, outcome: Committed, snapshot: Snapshot) -> None:
        """Take over the means of a committed exchange."""
        for section in outcome.sections:
            mean = outcome.mean[section.first : section.last]
            if section.name == PARAMETERS:
                self._descend(mean, snapshot)
            elif section.name == GRADIENTS:
                for own, view in self._pairs(self.learner.parameters, mean):
                    assert own.grad is not None
                    own.grad.copy_(view)
            else:
                own_then = snapshot.values[section.first : section.last]
                self._put_moment(section.name, mean, own_then, self.learner.num_steps - snapshot.num_steps)
        if outcome.residual.numel():
            self.residual = outcome.residual
        self.round += 1

    def _descend(self, delta: torch.Tensor, snapshot: Snapshot) -> None:
        self._config.outer.update(self.agreed, unflattened(delta, self.agreed), self.rule_state)
        own = self.learner.parameters
        for name, agreed in self.agreed.items():
            if snapshot.parameters:
                own[name].sub_(snapshot.parameters[name]).add_(agreed)
            else:
                own[name].copy_(agreed)

    def _put_moment(self, name: str, mean: torch.Tensor, own_then: torch.Tensor, num_steps: int) -> None:
        decay = self._config.moment_decays.get(name, 1.0) ** num_steps if num_steps else 1.0
        then = self._pairs(self.learner.moments[name], own_then)
        for (moment, view), (_, old) in zip(self._pairs(self.learner.moments[name], mean), then, strict=True):
            if num_steps:
                moment.add_(view - old, alpha=decay)
            else:
                moment.copy_(view)

    @torch.no_grad()
    def settle(self) -> None:
        """The run is over: forget local steps since the last round, so that all replicas are equal."""
        if not self._config.averages_gradients:
            assign_(self.learner.parameters, self.agreed)

    # What a newcomer takes over

    @torch.no_grad()
    def state(self) -> ReplicaState:
        """Copies of everything that a newcomer needs."""
        copied = {path: tensor.detach().clone() for path, tensor in self.tensors().items()}
        return ReplicaState(copied, self.round, self.rule_state.step, self.learner.num_steps)

    def tensors(self) -> Tensors:
        """Everything that a newcomer needs, live, by path."""
        groups = {"agreed": self.agreed}
        groups |= {f"rule/{name}": tensors for name, tensors in self.rule_state.tensors.items()}
        groups |= {f"moment/{name}": tensors for name, tensors in self.learner.moments.items()}
        return joined(groups)

    @torch.no_grad()
    def load(self, state: ReplicaState) -> None:
        """Become a copy of the replica whose state this is; what it had learned since the last round is dropped."""
        assign_(self.tensors(), state.tensors)
        self.settle()
        self.round, self.rule_state.step, self.learner.num_steps = state.round, state.rule_step, state.num_steps
        self.residual.zero_()
