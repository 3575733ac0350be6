"""The ranks that are one trainer together: who computes which answers, and how what all find becomes one step.

    every rank   groups ─> answers ─> its share of them ─> gradients, sums ── added up over the ranks ──> the same step

All ranks know all answers, so nobody has to be told what is whose. Each holds the whole model or, with FSDP2, a
shard of it; a gradient is the sum of what they find in either case.
"""

from collections.abc import Mapping, Sequence

import torch
from torch.distributed.tensor import DTensor

from farflung.learn.parameters import Tensors, assign_
from farflung.learn.redistribute import Site
from farflung.learn.staging import PARAMETERS, Staging


def deal(num_tokens: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Which answers each rank computes, by their places in `num_tokens` and in that order.

    The longest come first and go to whoever has the fewest tokens yet, so that no rank waits long for the others.
    """
    dealt: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for place in sorted(range(len(num_tokens)), key=lambda place: -num_tokens[place]):
        rank = loads.index(min(loads))
        dealt[rank].append(place)
        loads[rank] += num_tokens[place]
    return [sorted(places) for places in dealt]


class Ranks:
    """One of them. Its methods are collective: all ranks call them in the same order."""

    def __init__(self, site: Site | None, parameters: Tensors) -> None:
        """`site`: None is this process alone; `parameters`: live, whole or each rank's shards."""
        self._site = site
        self._parameters = parameters
        self.rank = site.rank if site is not None else 0
        self.num_ranks = site.num_ranks if site is not None else 1
        self.is_sharded = any(isinstance(tensor, DTensor) for tensor in parameters.values())

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each over all ranks, the same everywhere."""
        if self._site is None:
            return list(values)
        return [sum(column) for column in zip(*self._site.gather(list(values)), strict=True)]

    def add_gradient(self, loss: torch.Tensor) -> None:
        """That of this rank's part of the loss, to what the parameters have; afterwards, `add_up_gradients`."""
        # FSDP2 takes the mean over the ranks, also of what has been divided by the number of all answers already.
        (loss * self.num_ranks if self.is_sharded else loss).backward()

    def add_up_gradients(self) -> None:
        """Leave the sum over all ranks in every parameter, each of which has a gradient.

        DistributedDataParallel cuts its buckets anew after the first backward pass, so a trainer that makes its steps
        again after a crash would round otherwise than it did before: here each tensor is added up by itself.
        """
        if self._site is not None and not self.is_sharded:
            self._site.add_up_(tensor.grad for tensor in self._parameters.values() if tensor.grad is not None)

    def whole(self, tensors: Tensors) -> Tensors:
        """Put together on the first rank if they are cut, and nothing on the others; live if they are not."""
        if not self.is_sharded:
            return tensors
        staging = self._staging(tensors)
        staging.collect({PARAMETERS: tensors})
        return {
            name: values.view(tensors[name].shape).to(tensors[name].dtype)
            for lane in staging.lanes
            for name, values in lane.parameters.items()
        }

    def assign_(self, target: Tensors, source: Mapping[str, torch.Tensor]) -> None:
        """Copy whole tensors, which the first rank alone has to have, into those of all ranks."""
        if self._site is None:
            assign_(target, source)
            return
        staging = self._staging(target)
        for lane in staging.lanes:
            assign_(lane.parameters, {name: source[name].reshape(-1) for name in lane.parameters})
        staging.spread({PARAMETERS: target})

    def _staging(self, tensors: Tensors) -> Staging:
        assert self._site is not None
        return Staging(self._site, {PARAMETERS: tensors}, 1)
