"""One vector for a text: the last hidden states of its tokens, pooled (pure).

Shapes: N texts, T tokens of the longest, H the hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch

Pooling = Literal["mean", "last"]
"""The mean over all tokens, or the state of the last one, which has seen them all."""

HiddenStates = Callable[[torch.Tensor], torch.Tensor]
"""Token ids (N, T) -> their states after the final norm (N, T, H). Texts shorter than T are filled up at their end,
where the earlier states of a causal model cannot see it."""

TOKENS_MAX = 8192
"""Of one forward, filled up."""


def batches_of(lengths: Sequence[int], num_tokens_max: int = TOKENS_MAX) -> list[list[int]]:
    """Which texts go together: alike in length, and filled up to at most so many tokens; a longer one is alone."""
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        if batches and (len(batches[-1]) + 1) * lengths[number] <= num_tokens_max:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def embed(
    texts: Sequence[Sequence[int]],
    hidden_states: HiddenStates,
    pooling: Pooling,
    *,
    num_tokens_max: int = TOKENS_MAX,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """The unit vectors of texts given as tokens, batch by batch: their numbers, and vectors (N, H) in float32."""
    for numbers in batches_of([len(text) for text in texts], num_tokens_max):
        lengths = [len(texts[number]) for number in numbers]
        ids_NT = torch.zeros(len(numbers), max(lengths), dtype=torch.long)
        for row, number in enumerate(numbers):
            ids_NT[row, : lengths[row]] = torch.tensor(texts[number])
        with torch.inference_mode():
            hidden_NTH = hidden_states(ids_NT.to(device)).float()
            pooled_NH = torch.stack(
                [_pool(states_TH[:length], pooling) for states_TH, length in zip(hidden_NTH, lengths, strict=True)]
            )
            yield numbers, torch.nn.functional.normalize(pooled_NH, dim=-1).cpu()


def _pool(states_TH: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    return states_TH.mean(dim=0) if pooling == "mean" else states_TH[-1]
