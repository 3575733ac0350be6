"""One replica between its local steps: what all have agreed on, what it brings to a mean, and how a mean is applied.

Local steps may go on while a mean travels. Let x_s be the parameters that were brought, g what the rule made of their
mean and x those of now: then x becomes x + (g - x_s). A moment s with decay beta that was averaged k steps ago becomes
s + beta^k (mean - s_s), which is what it would be had the mean come at once. Where no step was made meanwhile, they
become g and the mean to the bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from farflung.learn.parameters import Tensors, assign_, joined
from farflung.learn.rules import RuleState
from farflung.systems.desync.cadence import GRADIENTS, PARAMETERS, SITE_PARAMETERS, is_parameters
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.data import DealtData, Position
from farflung.systems.desync.exchange import Section
from farflung.systems.desync.learner import Learner
from farflung.systems.desync.messages import Assignment, Dealt
from farflung.systems.desync.payload import add_stretch, assign_stretch, flattened, length_of, unflattened
from farflung.systems.desync.snapshots import Boundary, Correction, ReplicaState, Snapshot

AGREED = "agreed"


@dataclass(slots=True)
class Fragment:
    """A stretch of the parameters that is averaged on its own."""

    first: int
    last: int
    rule_state: RuleState = field(default_factory=RuleState)


class Replica:
    """A learner and what its run has agreed on."""

    def __init__(self, learner: Learner, config: DesyncConfig, data: DealtData | None = None) -> None:
        """`data`: the learner's, if the coordinator deals it."""
        self.learner = learner
        self.data = data
        self._config = config
        length = length_of(learner.parameters)
        self.agreed = flattened(learner.parameters)
        """Parameters as of the last round that averaged them, [length] float32."""
        self.round = 0
        """Rounds of the run whose outcome it has."""
        self.num_credited = 0
        """Steps that the run had credited then, over all workers ..."""
        self.first = 0
        """... and the step of the fastest worker at which its next round began."""
        self.drift = 0.0
        """Distance of the parameters last brought from their mean, over the mean's norm; 0 unless periods follow it."""
        bounds = config.fragment_bounds(length)
        self._fragments = {name: Fragment(first, last) for name, (first, last) in bounds.items()}
        for fragment in self._fragments.values():
            fragment.rule_state = config.outer.init(self._stretch(fragment))
        moments = {name: length_of(tensors) for name, tensors in learner.moments.items()}
        fragments = {name: one.last - one.first for name, one in self._fragments.items()}
        self.lengths: dict[str, int] = {**fragments, SITE_PARAMETERS: length, GRADIENTS: length, **moments}
        """Values of every state that can be averaged."""
        self._residual = torch.zeros(length if config.keeps_residual else 0)  # in units of the mean

    @property
    def residual(self) -> torch.Tensor:
        """What lossy codecs have left out so far, live, [length] or nothing: part of a checkpoint."""
        return self._residual

    def _stretch(self, fragment: Fragment) -> Tensors:
        return {AGREED: self.agreed[fragment.first : fragment.last]}

    @property
    def agreed_parameters(self) -> Tensors:
        """`agreed` by name (views)."""
        return unflattened(self.agreed, self.learner.parameters)

    # What it brings

    @torch.no_grad()
    def boundary(self, due: Sequence[str]) -> Boundary:
        """Copies of what `due` needs; runs on the device, between two steps."""
        states: dict[str, torch.Tensor] = {}
        for name in due:
            if is_parameters(name) or name == SITE_PARAMETERS:
                states.setdefault(PARAMETERS, torch.empty(0))
            elif name == GRADIENTS:
                gradients = {which: one.grad for which, one in self.learner.parameters.items() if one.grad is not None}
                assert gradients.keys() == self.learner.parameters.keys(), "a parameter has no gradient"
                states[GRADIENTS] = flattened(gradients)
            else:
                states[name] = flattened(self.learner.moments[name])
        if PARAMETERS in states:
            states[PARAMETERS] = flattened(self.learner.parameters)
        position = Position() if self.data is None else self.data.position
        return Boundary(self.learner.num_steps, states, position)

    def bring(self, due: tuple[str, ...], boundary: Boundary) -> Snapshot:
        """What this replica puts into an exchange."""
        values = torch.empty(sum(self.lengths[name] for name in due))
        residual = torch.zeros(len(values) if self._residual.numel() else 0)
        first = 0
        for name in due:
            place = slice(first, first + self.lengths[name])
            if is_parameters(name):
                fragment = self._fragments[name]
                own = slice(fragment.first, fragment.last)
                torch.sub(self.agreed[own], boundary.states[PARAMETERS][own], out=values[place])
            elif name == SITE_PARAMETERS:
                torch.sub(self.agreed, boundary.states[PARAMETERS], out=values[place])
            else:
                values[place] = boundary.states[name]
            kept = self._kept_residual(name)
            if kept.numel():
                residual[place] = kept
            first += self.lengths[name]
        return Snapshot(due, values, residual, boundary.num_steps, boundary.position)

    def _kept_residual(self, name: str) -> torch.Tensor:
        """View of what is kept for a state; empty if nothing is."""
        if name == GRADIENTS:
            return self._residual
        fragment = self._fragments.get(name)
        return self._residual[:0] if fragment is None else self._residual[fragment.first : fragment.last]

    # What comes back

    @torch.no_grad()
    def land(
        self,
        sections: Sequence[Section],
        mean: torch.Tensor,
        residual: torch.Tensor,
        snapshot: Snapshot,
        assignment: Assignment,
    ) -> list[Correction]:
        """Agree on the outcome of an exchange, after which comes `assignment`: what it means for the learner."""
        corrections: list[Correction] = []
        for section in sections:
            place = slice(section.first, section.last)
            own = snapshot.values[place]
            kept = self._kept_residual(section.name)
            if kept.numel():
                kept.copy_(residual[place])
            if section.name == SITE_PARAMETERS:
                corrections += self._meet(mean[place], own, snapshot)
                continue
            if is_parameters(section.name):
                corrections.append(self._descend(self._fragments[section.name], mean[place], own, snapshot.num_steps))
            else:
                decay = self._config.moment_decays.get(section.name, 1.0)
                change = mean[place] - own
                corrections.append(Correction(section.name, 0, mean[place], change, snapshot.num_steps, decay))
        self.round += 1
        self.num_credited, self.first = assignment.num_credited, assignment.first
        return corrections

    def _descend(self, fragment: Fragment, delta: torch.Tensor, own_delta: torch.Tensor, num_steps: int) -> Correction:
        agreed = self.agreed[fragment.first : fragment.last]
        then = agreed - own_delta
        if self._config.periods == "drift":
            self.drift = float((own_delta - delta).norm() / (agreed - delta).norm().clamp(min=1e-12))
        self._config.outer.update(self._stretch(fragment), {AGREED: delta}, fragment.rule_state)
        return Correction(PARAMETERS, fragment.first, agreed.clone(), agreed - then, num_steps, 1.0)

    def _meet(self, delta: torch.Tensor, own_delta: torch.Tensor, snapshot: Snapshot) -> list[Correction]:
        """The mean of the site, where no mean of all sites comes with it; what is agreed on stays."""
        apart = [one for name, one in self._fragments.items() if name not in snapshot.due]
        return [
            Correction(PARAMETERS, one.first, self.agreed[span] - delta[span], own_delta[span] - delta[span], then, 1.0)
            for one in apart
            for span, then in [(slice(one.first, one.last), snapshot.num_steps)]
        ]

    def apply(self, corrections: Sequence[Correction]) -> None:
        """Correct the learner; runs on the device, between two steps."""
        for one in corrections:
            num_steps = self.learner.num_steps - one.num_steps
            tensors = self._live(one.state)
            if num_steps:
                add_stretch(tensors, one.first, one.change, one.decay**num_steps)
            else:
                assign_stretch(tensors, one.first, one.target)

    @torch.no_grad()
    def correct(self, boundary: Boundary, corrections: Sequence[Correction]) -> None:
        """Correct copies that were taken before the corrections landed."""
        for one in corrections:
            state = boundary.states.get(one.state)
            if state is not None:
                scale = one.decay ** (boundary.num_steps - one.num_steps)
                state[one.first : one.first + len(one.change)].add_(one.change, alpha=scale)

    def _live(self, state: str) -> Mapping[str, torch.Tensor]:
        if state == PARAMETERS:
            return self.learner.parameters
        if state == GRADIENTS:
            return {name: one.grad for name, one in self.learner.parameters.items() if one.grad is not None}
        return self.learner.moments[state]

    def take(self, dealt: Dealt | None) -> None:
        """Read from the shards that were dealt; runs on the device, between two steps."""
        if self.data is not None and dealt is not None:
            self.data.take(dealt)

    def forget_steps(self) -> None:
        """Local steps since the last round do not count: go back to what was agreed on then, with the own moments."""
        self.settle()
        if self.data is not None:
            self.data.rewind()

    def settle(self) -> None:
        """Forget local steps since the last round: with the same moments, all replicas would be equal."""
        if not self._config.averages_gradients:
            assign_stretch(self.learner.parameters, 0, self.agreed)

    # What a newcomer takes over

    def copy_agreed(self) -> ReplicaState:
        """Copies of what the run has agreed on, without the learner's own."""
        copied = {path: tensor.detach().clone() for path, tensor in joined(self._agreed_groups()).items()}
        steps = tuple(one.rule_state.step for one in self._fragments.values())
        return ReplicaState(copied, self.round, self.num_credited, self.first, steps, 0)

    def with_moments(self, agreed: ReplicaState | None) -> ReplicaState:
        """What a newcomer needs: `agreed` (None: as it is now) with the learner's moments; runs on the device."""
        if self._config.averages_gradients:
            self.agreed = flattened(self.learner.parameters)  # replicas are equal at all times
        agreed = self.copy_agreed() if agreed is None else agreed
        moments = {path: tensor.detach().clone() for path, tensor in joined(self._moment_groups()).items()}
        return replace(agreed, tensors=agreed.tensors | moments, num_steps=self.learner.num_steps)

    def _agreed_groups(self) -> dict[str, Tensors]:
        rules = {
            f"rule/{name}/{memory}": tensors
            for name, one in self._fragments.items()
            for memory, tensors in one.rule_state.tensors.items()
        }
        return {"run": {AGREED: self.agreed}, **rules}

    def _moment_groups(self) -> dict[str, Tensors]:
        return {f"moment/{name}": tensors for name, tensors in self.learner.moments.items()}

    def tensors(self) -> Tensors:
        """Everything that a newcomer takes over, live, by path."""
        return joined(self._agreed_groups() | self._moment_groups())

    @torch.no_grad()
    def load(self, state: ReplicaState) -> None:
        """Become a copy of another replica; what this one had learned since the last round is dropped."""
        assign_(self.tensors(), state.tensors)
        assign_stretch(self.learner.parameters, 0, self.agreed)
        for fragment, step in zip(self._fragments.values(), state.rule_steps, strict=True):
            fragment.rule_state.step = step
        self.round, self.num_credited, self.first = state.round, state.num_credited, state.first
        self.learner.num_steps = state.num_steps
        self._residual.zero_()
        if self.data is not None:
            self.data.rewind()
