"""Measuring: how much an objective changes along random directions, many directions in one forward pass.

The measurement of a slot with direction z is (L(W + eps z) - L(W - eps z)) / (2 eps), an unbiased estimate of
<gradient, z> up to eps^2 (SPSA; MeZO, equation 1). Both sides of `num_directions` slots are one batch; weights are
never written. A machine that can back-propagate gets all slots' <gradient, z> from one backward pass instead
(`project_gradient`), in the same units.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from farflung.learn.parameters import Tensors
from farflung.systems.onebyte.directions import draw_directions, draw_in_pieces
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.objective import Batch, Objective
from farflung.systems.onebyte.perturb import Perturbation, perturbed
from farflung.systems.onebyte.tensors import chosen_parameters

DIRECTION_ELEMENTS_MAX = 1 << 22
"""Random values that are in memory at a time when a gradient is projected."""
SIGN_FLIPS_WARNED = 0.1
"""Share of measurements with the wrong sign above which epsilon is too small for the numbers."""
COARSE_STEPS = 8
"""How many times longer the steps are against which signs are checked."""


class Measurer:
    """Measures slots of one run on one model, whose weights are those of the round."""

    def __init__(self, header: Header, model: nn.Module, objective: Objective, *, num_directions: int = 16) -> None:
        """`num_directions`: slots in one forward pass, which has twice as many copies of the batch.

        Raises:
            ValueError: the model lacks a tensor of the run.
        """
        self._header = header
        self._model = model.eval()
        self._objective = objective
        self._parameters: Tensors = chosen_parameters(model, header.tensors)
        self._num_directions = num_directions

    def differences(
        self, batch: Batch, round_number: int, slots: range, *, epsilon: float | None = None
    ) -> torch.Tensor:
        """L(W + eps z) - L(W - eps z) of each slot and sequence, float32 [slots, sequences].

        Raises:
            ValueError: a tensor cannot be measured in this model.
        """
        epsilon = self._header.epsilon if epsilon is None else epsilon
        found = [self._measure(batch, round_number, piece, epsilon) for piece in self._pieces(slots)]
        return torch.cat(found)

    def measure(self, batch: Batch, round_number: int, slots: range) -> list[float]:
        """The measurement of each slot."""
        means = self.differences(batch, round_number, slots).double().mean(1)
        return (means / (2 * self._header.epsilon)).tolist()

    def project_gradient(self, batch: Batch, round_number: int, slots: range) -> list[float]:
        """<gradient, z> of each slot, exactly, by one backward pass."""
        names = list(self._parameters)
        was_required = [self._parameters[name].requires_grad for name in names]
        try:
            for name in names:
                self._parameters[name].requires_grad_(True)
            loss = self._objective(self._model, batch).mean()
            gradients = torch.autograd.grad(loss, [self._parameters[name] for name in names])
        finally:
            for name, required in zip(names, was_required, strict=True):
                self._parameters[name].requires_grad_(required)
        return self._project(gradients, round_number, slots).tolist()

    def sign_flip_rate(self, batch: Batch, round_number: int, slots: range) -> float:
        """Share of slots whose sign differs from that of a measurement with steps 8 times as long.

        Rounding noise is as large at any step, so that longer steps show what the header's epsilon drowns in it; where
        epsilon is large enough, both agree but for slots with almost no slope.
        """
        fine = self.differences(batch, round_number, slots).double().mean(1)
        coarse_step = self._header.epsilon * COARSE_STEPS
        coarse = self.differences(batch, round_number, slots, epsilon=coarse_step).double().mean(1)
        return float((fine.sign() != coarse.sign()).double().mean())

    def _pieces(self, slots: range) -> Iterator[range]:
        """Cut at multiples of the size, so that who measures more or fewer slots computes the same batches."""
        first = slots.start
        while first < slots.stop:
            end = min((first // self._num_directions + 1) * self._num_directions, slots.stop)
            yield range(first, end)
            first = end

    @torch.no_grad()
    def _measure(self, batch: Batch, round_number: int, slots: range, epsilon: float) -> torch.Tensor:
        """Both sides of every slot: replica 2 i goes forth along slot i, replica 2 i + 1 goes back."""
        num_sequences, num_replicas = len(next(iter(batch.values()))), 2 * len(slots)
        steps = torch.tensor([epsilon, -epsilon]).repeat(len(slots))
        perturbations = {
            tensor.name: self._perturbation(number, round_number, slots, steps)
            for number, tensor in enumerate(self._header.tensors)
        }
        copies = {name: rows.repeat(num_replicas, *[1] * (rows.dim() - 1)) for name, rows in batch.items()}
        with perturbed(self._model, self._parameters, perturbations, num_replicas * num_sequences):
            values = self._objective(self._model, copies)
        sides = values.float().cpu().view(len(slots), 2, num_sequences)
        return sides[:, 0] - sides[:, 1]

    def _perturbation(self, number: int, round_number: int, slots: range, steps: torch.Tensor) -> Perturbation:
        tensor = self._header.tensors[number]
        drawn = draw_directions(self._header, tensor, round_number, slots.start, len(slots))
        return Perturbation.of(drawn.repeated(2), steps, self._parameters[tensor.name])

    def _project(self, gradients: Sequence[torch.Tensor], round_number: int, slots: range) -> torch.Tensor:
        totals = torch.zeros(len(slots), dtype=torch.float64)
        for tensor, gradient in zip(self._header.tensors, gradients, strict=True):
            matrix = gradient.float().reshape(tensor.rows, tensor.shape[-1])
            for piece, drawn in draw_in_pieces(
                self._header, tensor, round_number, slots, DIRECTION_ELEMENTS_MAX, gradient.device
            ):
                first = piece.start - slots.start
                totals[first : first + len(piece)] += drawn.products(matrix).cpu()
        return totals


def epsilon_warning(rate: float, epsilon: float, dtype: torch.dtype) -> str | None:
    """A sentence if too many signs are wrong, else None."""
    if rate <= SIGN_FLIPS_WARNED:
        return None
    return (
        f"epsilon {epsilon:g} is too small for {str(dtype).removeprefix('torch.')}: {rate:.0%} of the measurements "
        f"have another sign than with steps {COARSE_STEPS} times as long; choose a larger epsilon or float32"
    )
