"""Tokenized examples, and the batch of each round made from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from farflung.learn.permutation import Permutation
from farflung.systems.onebyte.objective import IGNORED, Batch


@dataclass(frozen=True, slots=True)
class Rows:
    """Sequences of tokens; prompts that end where the answer is due, or texts that hold it."""

    tokens: tuple[tuple[int, ...], ...]
    num_given: tuple[int, ...]
    """How many tokens at the beginning of each sequence are not learned."""
    answers: tuple[int, ...] | None
    """What is due after each prompt, by number; None: the sequences hold it."""
    has_positions: bool
    """Batches tell positions, which a model that learned a vector for each would count from the padding."""

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int]) -> Batch:
        """These rows as tensors [rows, longest]; prompts are padded on the left, so that all end together."""
        length = max(len(self.tokens[index]) for index in indices)
        input_ids = torch.zeros(len(indices), length, dtype=torch.long)
        mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, IGNORED)
        for row, index in enumerate(indices):
            tokens = torch.tensor(self.tokens[index])
            first = 0 if self.answers is None else length - len(tokens)
            input_ids[row, first : first + len(tokens)] = tokens
            mask[row, first : first + len(tokens)] = 1
            labels[row, first + self.num_given[index] : first + len(tokens)] = tokens[self.num_given[index] :]
        batch = {"input_ids": input_ids, "attention_mask": mask}
        if self.has_positions:
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if self.answers is None:
            return {**batch, "labels": labels}
        return {**batch, "answers": torch.tensor([self.answers[index] for index in indices])}

    def share(self, number: int, num_shares: int) -> "Rows":
        """Every `num_shares`th row, from row `number` on: what one of several machines holds."""
        return self._chosen(range(number, len(self), num_shares))

    def first(self, count: int) -> "Rows":
        """So many rows at most."""
        return self._chosen(range(min(count, len(self))))

    def _chosen(self, chosen: Sequence[int]) -> "Rows":
        return Rows(
            tuple(self.tokens[index] for index in chosen),
            tuple(self.num_given[index] for index in chosen),
            None if self.answers is None else tuple(self.answers[index] for index in chosen),
            self.has_positions,
        )


@dataclass(frozen=True, slots=True)
class Batches:
    """The batch of each round: all rows in a new order in every epoch, the same on every machine."""

    rows: Rows
    batch_size: int
    seed: str

    def __call__(self, round_number: int) -> Batch:
        """Of this round; rounds may be asked for in any order."""
        return self.rows.batch(self.indices(round_number))

    def indices(self, round_number: int) -> list[int]:
        """Which rows these are."""
        first = round_number * self.batch_size
        return [self._row(place) for place in range(first, first + self.batch_size)]

    def _row(self, place: int) -> int:
        epoch, index = divmod(place, len(self.rows))
        return Permutation(len(self.rows), f"{epoch}:{self.seed}".encode()[:64])(index)
