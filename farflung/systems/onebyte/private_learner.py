"""A learner whose bytes keep every single example of its data private.

The batch of a round is drawn anew, each example with the same probability; an example's difference of losses is clipped
to C; the sum over the batch is an integer, to which discrete normal noise is added. Only that is encoded, sent, and
counted as spent; whatever happens to it afterwards costs nothing more.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from farflung.systems.onebyte.code import encode_projections
from farflung.systems.onebyte.discrete_noise import Draw, discrete_gaussian
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.objective import Batch, Objective
from farflung.systems.onebyte.privacy import Budget
from farflung.systems.onebyte.sharing import GRID_BITS, Privacy

GRID = 1 << GRID_BITS


class PrivateLearner(ModelLearner):
    """One participant's replica of a run with shared slots."""

    def __init__(
        self,
        header: Header,
        model: nn.Module,
        objective: Objective,
        examples: Batch,
        batch_size: int,
        budget: Budget,
        draw: Draw,
        **options: Any,
    ) -> None:
        """`examples`: all of its data. `batch_size`: of a batch on average. `draw`: secret randomness.

        Raises:
            ValueError: the run has no privacy, or fewer examples than a batch.
        """
        super().__init__(header, model, objective, self._batch, **options)
        privacy = None if header.shared_slots is None else header.shared_slots.privacy
        num_examples = len(next(iter(examples.values())))
        if privacy is None:
            raise ValueError("this run adds no noise: set clip and a budget of epsilon in its run file")
        if not 0 < batch_size <= num_examples:
            raise ValueError(
                f"a batch of {batch_size} cannot be drawn from {num_examples} examples: choose a smaller one"
            )
        self.budget = budget
        self._privacy: Privacy = privacy
        self._examples = examples
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._draw = draw
        self._round_number = -1
        self._chosen: list[int] = []
        self._codes: dict[int, int] = {}
        """Of the round's slots: what was told once is told again, not measured again."""

    @property
    def epsilon(self) -> float:
        """Spent so far."""
        return self.budget.epsilon

    def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
        """One byte for each of these slots of a round, at the present weights.

        Raises:
            BudgetSpent: this round may not be measured any more.
        """
        if round_number != self._round_number:
            self.budget.spend()
            self._round_number, self._codes = round_number, {}
            self._chosen = [
                number for number in range(self._num_examples) if self._draw(self._num_examples) < self._batch_size
            ]
        slots = range(first_slot, first_slot + num_slots)
        new = [slot for slot in slots if slot not in self._codes]
        if new:
            self.refresh()
            stretch = range(new[0], new[-1] + 1)
            found = zip(stretch, self._told(round_number, stretch), strict=True)
            self._codes = {**dict(found), **self._codes}
        return bytes(self._codes[slot] for slot in slots)

    def _batch(self, round_number: int) -> Mapping[str, torch.Tensor]:
        return {name: rows[self._chosen] for name, rows in self._examples.items()}

    def _told(self, round_number: int, slots: range) -> bytes:
        sums = [0] * len(slots)
        if self._chosen:
            differences = self._measurer.differences(self._batch(round_number), round_number, slots)
            sums = self._clipped(differences).sum(1).tolist()
        sigma = Fraction(self._privacy.noise_multiplier) * GRID
        noisy = [total + discrete_gaussian(sigma, self._draw) for total in sums]
        unit = self._privacy.clip / GRID / self._batch_size / (2 * self._header.epsilon)
        return encode_projections([value * unit for value in noisy], self._header.code_exponent_min)

    def _clipped(self, differences: torch.Tensor) -> torch.Tensor:
        """Integers on the grid, none larger than C; what is no number counts nothing."""
        scaled = torch.nan_to_num(differences.double() / self._privacy.clip, nan=0.0)
        return scaled.clamp(-1, 1).mul(GRID).round().long()
