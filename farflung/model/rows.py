"""Rows of equal length that are decoded together, each drawing its tokens from a counter-based stream of its own.

Prompts may differ; what is drawn for a row does not depend on the others, beyond the last bits of its logits (kernels
round differently for batches of other sizes; a batch of the same size gives the same bits).
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from farflung.model.counter import noisy
from farflung.model.generator import ModelGenerator


class Rows:
    """One batch under way: a cache, the newest token of each row, and where each stream is."""

    def __init__(
        self,
        generator: ModelGenerator,
        texts: Sequence[Sequence[int]],
        keys: Sequence[bytes],
        first_places: Sequence[int],
        num_tokens_max: int,
    ) -> None:
        """Begin with `texts` (prompts and what has been answered so far, all of one length).

        Row r draws the next token at place `first_places[r]` of the stream `keys[r]` (its number in the answer).
        `num_tokens_max` more are drawn at most for each row.
        """
        self._generator = generator
        self._keys = list(keys)
        self._places = list(first_places)
        self._next_NT = torch.tensor(texts, dtype=torch.long, device=generator.device)
        self._opened = ExitStack()
        num_tokens = self._next_NT.numel() + num_tokens_max * len(keys)
        self._cache = self._opened.enter_context(generator.open_cache(num_tokens))

    def draw(self) -> tuple[list[int], list[float]]:
        """One more token for every row, and its log-probability under the model's own distribution."""
        logits_NV = self._generator.forward(self._next_NT, self._cache)[:, -1].float()
        tokens_N1 = noisy(logits_NV, self._keys, self._places).argmax(dim=1, keepdim=True)
        values_N = torch.log_softmax(logits_NV, dim=-1).gather(1, tokens_N1)[:, 0]
        self._next_NT = tokens_N1
        self._places = [place + 1 for place in self._places]
        return tokens_N1[:, 0].tolist(), values_N.tolist()

    def close(self) -> None:
        """Free the cache."""
        self._opened.close()
