"""Tokenized examples for heads: texts with a number each, and pairs of a better and a worse text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from farflung.apps.finetune.rows import Rows
from farflung.systems.onebyte.objective import Batch


@dataclass(frozen=True, slots=True)
class ScoredRows(Rows):
    """Texts, and what their scores should be."""

    targets: tuple[float, ...] = ()

    @classmethod
    def of(cls, rows: Rows, targets: tuple[float, ...]) -> "ScoredRows":
        """These rows with these scores."""
        return cls(rows.tokens, rows.num_given, rows.answers, rows.has_positions, targets)

    def batch(self, indices: Sequence[int]) -> Batch:
        """With `targets` [rows]."""
        return {**Rows.batch(self, indices), "targets": torch.tensor([self.targets[index] for index in indices])}

    def _chosen(self, chosen: Sequence[int]) -> "ScoredRows":
        return ScoredRows.of(Rows._chosen(self, chosen), tuple(self.targets[index] for index in chosen))


@dataclass(frozen=True, slots=True)
class PairedRows(Rows):
    """Better texts, and the worse one of each pair."""

    worse: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, rows: Rows, worse: tuple[tuple[int, ...], ...]) -> "PairedRows":
        """These rows as the better ones."""
        return cls(rows.tokens, rows.num_given, rows.answers, rows.has_positions, worse)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The better ones, then the worse ones, [2 rows, longest]."""
        tokens = tuple(self.tokens[index] for index in indices) + tuple(self.worse[index] for index in indices)
        both = Rows(tokens, tuple(len(row) for row in tokens), None, self.has_positions)
        return {name: tensor for name, tensor in both.batch(range(len(tokens))).items() if name != "labels"}

    def _chosen(self, chosen: Sequence[int]) -> "PairedRows":
        return PairedRows.of(Rows._chosen(self, chosen), tuple(self.worse[index] for index in chosen))
