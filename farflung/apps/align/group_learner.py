"""A trainer of several ranks: the first one's learner tells the others what to do and does it with them.

    trainer ── step(groups) ──> rank 0 ── tell(order) ── learner.step(groups) ──> metrics
                                others     hear()     ── learner.step(groups)

Hub, journal, audits, evaluation and checkpoints are the first rank's alone, and know of no other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from farflung.apps.align.materials import Materials
from farflung.apps.align.run_file import RunFile
from farflung.apps.runs.group import Group
from farflung.apps.runs.parallel import cut, device_of, take_first_weights
from farflung.learn.checkpoint import Json
from farflung.learn.parameters import Tensors
from farflung.systems.alignment import rollouts
from farflung.systems.alignment.learner import PolicyLearner


@dataclass(frozen=True, slots=True)
class Order:
    """Something that all ranks do together: a method of their learners."""

    method: Literal["step", "snapshot", "score", "state", "restore"]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Begin:
    """Make the model and its optimizer."""

    run: RunFile

    def follow(self, group: Group) -> None:
        """As `runs.group.Begin`."""
        learner = rank_learner(group, Materials.gather(self.run))
        while isinstance(order := group.hear(), Order):
            getattr(learner, order.method)(*order.arguments)


def rank_learner(group: Group, materials: Materials) -> PolicyLearner:
    """The learner of one rank; all ranks make it together.

    Raises:
        ValueError: this machine has too few accelerators.
    """
    run = materials.run
    torch.set_num_threads(run.training.num_threads)
    device = device_of(run.model.device, group.local_rank)
    model = materials.model(torch.device("cpu"))
    take_first_weights(model)
    if run.training.parallelism == "fsdp":
        cut(model, device, group.num_ranks)
    else:
        model.to(device)
    return PolicyLearner(model, run.learning, group_size=run.training.answers_per_prompt, site=group.site)


class GroupLearner:
    """The first rank's; a `Learner` as `PolicyLearner` is. One order is under way at a time."""

    def __init__(self, group: Group, materials: Materials) -> None:
        """Blocks until all ranks have made their models.

        Raises:
            ValueError: as `rank_learner`.
        """
        self._group = group
        with group.turn:
            group.tell(Begin(materials.run))
            self._learner = rank_learner(group, materials)

    @property
    def version(self) -> int:
        """Steps made."""
        return self._learner.version

    @property
    def alarms(self) -> list[str]:
        """Of the newest step."""
        return self._learner.alarms

    def step(self, groups: Sequence[rollouts.Group]) -> Mapping[str, float]:
        """As all that follows, see `Learner`."""
        return self._together(Order("step", (list(groups),)))

    def snapshot(self) -> Tensors:
        """See `Learner`."""
        return self._together(Order("snapshot"))

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        """See `Learner`."""
        return self._together(Order("score", (list(tokens),)))

    def state(self) -> tuple[Tensors, dict[str, Json]]:
        """See `Learner`."""
        return self._together(Order("state"))

    def restore(self, tensors: Tensors, state: Mapping[str, Json]) -> None:
        """See `Learner`.

        Raises:
            ValueError: as `PolicyLearner.restore`; nothing is changed then, on any rank.
        """
        self._learner.check(tensors, state)
        self._together(Order("restore", ({}, dict(state))), tensors, state)

    def _together(self, order: Order, *own_arguments: Any) -> Any:
        """What it gives here; `own_arguments`: in place of the order's, if the first rank knows more.

        Raises:
            ChildFailed: a rank has ended.
        """
        with self._group.turn:
            try:
                self._group.tell(order)
                return getattr(self._learner, order.method)(*(own_arguments or order.arguments))
            except RuntimeError:  # what torch says of connections to a rank that is gone tells nobody anything
                self._group.check()
                raise
