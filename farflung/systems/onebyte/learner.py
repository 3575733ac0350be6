"""A model that is tuned: it measures slots at the weights of the journal so far, and moves with what is committed.

The weights are a cache: base - sums * 2^-K, brought up to date before the next measurement. Base and sums may lie in
files that are mapped into memory, so that a machine that can run the model can also tune it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from farflung.learn.parameters import copies
from farflung.systems.onebyte.accumulator import Accumulators, write_tuned
from farflung.systems.onebyte.code import encode_projections
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.measure import Measurer
from farflung.systems.onebyte.objective import Batch, Objective
from farflung.systems.onebyte.quantised import quantised_layers
from farflung.systems.onebyte.steps import Step
from farflung.systems.onebyte.tensors import chosen_parameters


class ModelLearner:
    """One machine's replica of a run."""

    def __init__(
        self,
        header: Header,
        model: nn.Module,
        objective: Objective,
        data: Callable[[int], Batch],
        *,
        base: Mapping[str, torch.Tensor] | None = None,
        folder: Path | None = None,
        num_directions: int = 16,
        is_exact: bool = False,
    ) -> None:
        """`model` holds the base weights, in some layers perhaps as codes (`quantised.py`). `data` gives the batch of a
        round, which must be the same on every machine unless the run is about private data.

        `base`: the base weights, if they need not be copied (mapped from a file). `folder`: where the sums are kept, if
        not in memory. `num_directions`: slots in one forward pass. `is_exact`: measure by one backward pass.

        Raises:
            ValueError: the model lacks a tensor of the run, or is to back-propagate into codes.
        """
        self._header = header
        parameters, layers = chosen_parameters(model, header.tensors), quantised_layers(model)
        if is_exact and layers:
            raise ValueError(
                "weights that are codes have no gradient: measure by forward passes, or load the same base as floats"
            )
        self._accumulators = Accumulators(header, device=next(iter(parameters.values())).device, folder=folder)
        for name in layers.keys() & parameters.keys():
            layers[name].follow(self._accumulators.sums[name], header.update_exponent)
        self._parameters = {name: parameter for name, parameter in parameters.items() if name not in layers}
        self._base = copies(self._parameters) if base is None else base
        self._measurer = Measurer(header, model, objective, num_directions=num_directions)
        self._data = data
        self._is_exact = is_exact
        self._is_stale = False

    def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
        """One byte for each of these slots of a round, at the present weights."""
        self.refresh()
        measure = self._measurer.project_gradient if self._is_exact else self._measurer.measure
        projections = measure(self._data(round_number), round_number, range(first_slot, first_slot + num_slots))
        return encode_projections(projections, self._header.code_exponent_min)

    def add(self, steps: Sequence[Step]) -> None:
        """Move the weights.

        Raises:
            ValueError: further than 32 bits can count.
        """
        self._accumulators.add(steps)
        self._is_stale = True

    def digest(self) -> bytes:
        """32 bytes that are the same on every machine that has added the same."""
        return self._accumulators.digest()

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the model's weights up to date with what has been added."""
        if not self._is_stale:
            return
        for name, parameter in self._parameters.items():
            sums = [self._accumulators.sums[name]]
            write_tuned(parameter.detach(), self._base[name], sums, self._header.update_exponent)
        self._is_stale = False
