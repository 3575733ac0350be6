"""A worker's trainer whose steps are made by all ranks of a group: what the engines of a run see of it.

What engines read and write are copies of parameters and moments, float32 on the first rank's processor. What they have
written since the last order is told by the tensors' own counts of changes, and goes out with the next one.

    engine ── writes ──> copies ── order: changed ──> shards of all ranks ── steps ── collect ──> copies
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.orders import GRADIENTS, Apply, Begin, Collect, ComputeGradients, Order, Run
from farflung.apps.pretrain.rank import RankTrainer
from farflung.apps.pretrain.run_file import RunFile
from farflung.apps.runs.group import Group
from farflung.apps.runs.seats import Seat
from farflung.learn.parameters import Tensors, assign_, joined, parted
from farflung.learn.schedule import Schedule
from farflung.learn.staging import PARAMETERS
from farflung.learn.state import State
from farflung.learn.stream import TokenStream
from farflung.learn.trainer import Descended


class GroupOptimizer:
    """The optimizer of all ranks; as `learn.optimizer.NamedOptimizer`."""

    def __init__(self, trainer: "GroupTrainer", rank: RankTrainer) -> None:
        self._trainer = trainer
        self._optimizer = rank.trainer.optimizer

    @property
    def moments(self) -> dict[str, Tensors]:
        """As they are now: what the ranks have changed is fetched first, so ask anew after every computation."""
        return self._trainer.fresh_moments()

    @property
    def num_steps(self) -> int:
        """Steps taken."""
        return self._optimizer.num_steps

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        self._optimizer.num_steps = num_steps

    def state(self) -> State:
        """The moments and the count of steps."""
        return State(joined(self.moments), {"name": self._optimizer.config.name, "num_steps": self.num_steps})

    def load(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a saved state, of a group or of a worker alone.

        Raises:
            ValueError: it is of another optimizer or model; nothing is changed then.
        """
        self._optimizer.check(tensors, values)
        for name, moment in parted(tensors).items():
            assign_(self.moments[name], moment)
        self.num_steps = values["num_steps"]


class GroupTrainer:
    """The first rank's; as `learn.trainer.Trainer`. One order is under way at a time."""

    def __init__(self, group: Group, run: RunFile, seat: Seat, materials: Materials) -> None:
        """Blocks until all ranks have made their models.

        Raises:
            ValueError: the worker's batch cannot be shared equally.
        """
        run.training.check_ranks(group.num_ranks)
        model = materials.model()
        begin = Begin(
            config=model.config,
            training=run.training,
            parallelism=run.region(seat.region).parallelism,
            seed=materials.dropout_seed(seat),
        )
        self._group = group
        group.tell(begin)
        self._rank = RankTrainer(group, begin, model, materials.stream_of(seat))
        (lane,) = self._rank.staging.lanes
        shapes = {name: tensor.shape for name, tensor in self._rank.trainer.parameters.items()}
        staged = {PARAMETERS: lane.parameters, **lane.moments}
        self._staged = {
            state: {name: tensor.view(shapes[name]) for name, tensor in tensors.items()}
            for state, tensors in staged.items()
        }
        for name, parameter in self.parameters.items():
            parameter.grad = self._staged[GRADIENTS][name]
        self.optimizer = GroupOptimizer(self, self._rank)
        self._are_moments_stale = False
        self._seen = {state: self._count_changes(state) for state in self._staged}

    # As a trainer

    @property
    def parameters(self) -> Tensors:
        """Live."""
        return self._staged[PARAMETERS]

    @property
    def schedule(self) -> Schedule:
        """Progress -> factor of the learning rate."""
        return self._rank.trainer.schedule

    @property
    def stream(self) -> TokenStream:
        """Where the worker's batches come from."""
        assert self._rank.batches.stream is not None
        return self._rank.batches.stream

    @stream.setter
    def stream(self, stream: TokenStream) -> None:
        self._rank.batches.stream = stream

    @property
    def num_tokens(self) -> int:
        """Targets seen so far, by all ranks."""
        return self._rank.trainer.num_tokens * self._group.num_ranks

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Descended:
        """As `Trainer.run`."""
        progress = tuple(progress_of_step(number) for number in range(num_steps))
        return self._perform(lambda changed, steps: Run(changed=changed, num_steps=steps, progress=progress))

    def compute_gradients(self) -> float:
        """As `Trainer.compute_gradients`."""
        return self._perform(lambda changed, steps: ComputeGradients(changed=changed, num_steps=steps))

    def apply(self, factor: float) -> float:
        """As `Trainer.apply`."""
        return self._perform(lambda changed, steps: Apply(changed=changed, num_steps=steps, factor=factor))

    # With the group

    def fresh_moments(self) -> dict[str, Tensors]:
        """Live until the next computation."""
        names = tuple(name for name in self._staged if name not in (PARAMETERS, GRADIENTS))
        if self._are_moments_stale:
            self._perform(lambda changed, steps: Collect(changed=changed, num_steps=steps, states=names))
        return {name: self._staged[name] for name in names}

    def _perform(self, make_order: Callable[[tuple[str, ...], int], Order]) -> Any:
        with self._group.turn:
            changed = tuple(state for state in self._staged if self._seen.get(state) != self._count_changes(state))
            if self._are_moments_stale:
                changed = tuple(state for state in changed if state in (PARAMETERS, GRADIENTS))
            order = make_order(changed, self.optimizer.num_steps)
            self._group.tell(order)
            result = self._rank.perform(order)
            if not isinstance(order, ComputeGradients):
                self._are_moments_stale = not isinstance(order, Collect)
            self._seen = {state: self._count_changes(state) for state in self._staged}
            return result

    def _count_changes(self, state: str) -> tuple[int, ...]:
        return tuple(tensor._version for tensor in self._staged[state].values())
