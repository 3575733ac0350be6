"""One rank's share of a worker's training: rows of every batch, and with FSDP2 a shard of every tensor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from farflung.apps.pretrain.materials import new_trainer
from farflung.apps.pretrain.orders import GRADIENTS, Apply, Begin, Collect, ComputeGradients, Order, Run
from farflung.apps.runs.group import Group
from farflung.apps.runs.parallel import cut, device_of, take_first_weights
from farflung.apps.runs.sites import Parallelism
from farflung.learn.loss import next_token_loss
from farflung.learn.parameters import named_parameters
from farflung.learn.staging import PARAMETERS, Staging, States
from farflung.learn.stream import TokenStream
from farflung.learn.trainer import Descended


class SharedBatches:
    """Batches that the first rank draws and deals out, the same number of rows to each rank."""

    def __init__(self, group: Group, stream: TokenStream | None, num_rows: int, sequence_length: int) -> None:
        """`stream`: of the whole worker, on the first rank; `num_rows`: of one rank."""
        self.stream = stream
        self._group = group
        self._shape = (num_rows, sequence_length + 1)

    @property
    def cursor(self) -> dict[str, int]:
        """How far the worker's data are read; told on the first rank."""
        return {} if self.stream is None else self.stream.cursor

    def seek(self, cursor: Mapping[str, int]) -> None:
        """Go on from there; on the first rank."""
        assert self.stream is not None
        self.stream.seek(cursor)

    def next_batch(self) -> torch.Tensor:
        """This rank's rows of the next batch, int64 [rows, sequence + 1]."""
        received = torch.empty(self._shape, dtype=torch.int64)
        self._group.deal(
            received, None if self.stream is None else self.stream.next_batch().chunk(self._group.num_ranks)
        )
        return received


class RankTrainer:
    """Performs orders. All ranks make one, and perform the same orders in the same order."""

    def __init__(self, group: Group, begin: Begin, model: PreTrainedModel, stream: TokenStream | None) -> None:
        """`stream`: on the first rank."""
        self._group = group
        training = begin.training
        torch.set_num_threads(training.num_threads)
        device = device_of(training.device, group.local_rank)
        take_first_weights(model)
        parallel = _in_parallel(model, begin.parallelism, device, group)
        num_rows = training.batch_size // group.num_ranks
        self.batches = SharedBatches(group, stream, num_rows, training.sequence_length)
        seed = f"{begin.seed}:{group.rank}" if group.rank else begin.seed
        self.trainer = new_trainer(parallel, named_parameters(model), self.batches, training, device, seed)
        self.staging = Staging(group.site, {**self._states(), GRADIENTS: self.trainer.parameters}, 1)
        self.staging.collect(self._states())

    def _states(self) -> dict[str, Mapping[str, torch.Tensor]]:
        return {PARAMETERS: self.trainer.parameters, **self.trainer.optimizer.moments}

    def perform(self, order: Order) -> Any:
        """Do it together with the other ranks; what it gives is the whole worker's."""
        if order.num_steps != self.trainer.optimizer.num_steps:
            self.trainer.optimizer.num_steps = order.num_steps
        self.staging.spread(self._named(order.changed))
        match order:
            case Run(progress=progress):
                descended = self._of_all(self.trainer.run(len(progress), progress.__getitem__))
                self._collect(PARAMETERS)
                return descended
            case ComputeGradients():
                loss = self._group.mean(self.trainer.compute_gradients())
                self._collect(GRADIENTS)
                return loss
            case Apply(factor=factor):
                norm = self.trainer.apply(factor)
                self._collect(PARAMETERS)
                return norm
            case Collect(states=states):
                self._collect(*states)
            case _:
                raise AssertionError(f"no rank knows {order}")
        return None

    def _collect(self, *names: str) -> None:
        self.staging.collect(self._named(names))

    def _named(self, names: tuple[str, ...]) -> States:
        own = {**self._states(), GRADIENTS: self.trainer.gradients}
        return {name: own[name] for name in names}

    def _of_all(self, descended: Descended) -> Descended:
        """Gradients are one, and so is what was skipped; losses are of each rank's rows."""
        loss = self._group.mean(descended.loss)
        return replace(descended, loss=loss, num_tokens=descended.num_tokens * self._group.num_ranks)


def _has_idle(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether a batch may leave parameters without a gradient: idle experts, unused heads."""
    next_token_loss(model, torch.zeros((1, 2), dtype=torch.int64, device=device)).backward()
    is_idle = any(one.grad is None for one in model.parameters() if one.requires_grad)
    model.zero_grad()
    return is_idle


def _in_parallel(model: PreTrainedModel, parallelism: Parallelism, device: torch.device, group: Group) -> nn.Module:
    """The model as what averages its gradients over the ranks."""
    if parallelism == "ddp":
        model.to(device)  # pyright: ignore[reportArgumentType] - transformers wraps it
        device_ids = [device] if device.type == "cuda" else None
        parallel = DistributedDataParallel(
            model, device_ids=device_ids, find_unused_parameters=_has_idle(model, device)
        )
        setattr(parallel, "config", model.config)  # noqa: B010 - the loss asks for it, and a module's type knows none
        return parallel
    cut(model, device, group.num_ranks)
    return model
