"""The stream of training samples: shuffled by index, cut into shards, and continued from a cursor of a few numbers.

Sample i is the tokens [i T, i T + T + 1), T being the sequence length: neighbours share one token, which is the last
target of one and the first input of the next. It belongs to shard i % num_shards in every epoch, so that no two shards
ever draw the same sample, however far one is ahead of another. Within a shard each epoch has an order of its own.

The number of shards is the capacity of a run and stays; who holds which of them may change at any time. A stream draws
from the shards it holds and its cursor says how far each of them is: handed over, it lets another holder go on there.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from farflung.learn.permutation import Permutation
from farflung.learn.shards import ORDER, Shard, cursor_of, shards_of

Tokens = np.ndarray[tuple[int], np.dtype[Any]]
"""One row of token numbers: uint16, uint32 or any other integers, in memory or mapped from a file."""

PROBE_TOKENS = 4096
"""Tokens at either end of the data that tell it from other data of the same length."""


class TokenStream:
    """Batches of samples from the shards that one worker holds, without end."""

    def __init__(
        self,
        tokens: Tokens | torch.Tensor,
        sequence_length: int,
        batch_size: int,
        shard: Shard | Sequence[Shard],
        seed: str,
    ) -> None:
        """Stream `tokens` (one axis, integers), `batch_size` sequences at a time; the seed decides the order.

        Raises:
            ValueError: impossible settings, or too few tokens for each shard to have a sample.
        """
        held = (shard,) if isinstance(shard, Shard) else tuple(shard)
        _check_settings(sequence_length, batch_size, held)
        self._tokens = _as_row(tokens)
        self._sequence_length = sequence_length
        self._batch_size = batch_size
        self._num_shards = held[0].num_shards
        self._seed = seed
        self.num_samples = num_samples(self._tokens, sequence_length)
        """In one epoch, over all shards."""
        if self.num_samples < self._num_shards:
            raise ValueError(
                f"{len(self._tokens):,} tokens give {self.num_samples:,} sequences of {sequence_length} and the token "
                f"after, too few for {self._num_shards} shards: take more data, shorter sequences or fewer shards"
            )
        self._drawn = {each.index: 0 for each in sorted(held, key=lambda each: each.index)}
        self._order = self._order_number()

    @property
    def cursor(self) -> dict[str, int]:
        """How far each held shard is: a copy, fit for a checkpoint or for whoever holds these shards next."""
        return cursor_of(self._order, self._drawn)

    @property
    def num_shards(self) -> int:
        """Into how many all the samples are cut."""
        return self._num_shards

    @property
    def shards(self) -> tuple[int, ...]:
        """Indices of the held shards, in order."""
        return tuple(self._drawn)

    @property
    def num_drawn(self) -> int:
        """Samples drawn from the held shards so far, by this holder and those before it."""
        return sum(self._drawn.values())

    def seek(self, cursor: Mapping[str, int]) -> None:
        """Hold exactly the shards of a cursor from now on, each as far as it says.

        Raises:
            ValueError: a cursor of other tokens, another sequence length, number of shards or seed.
        """
        if cursor.get(ORDER) != self._order:
            raise ValueError(
                "this position in the data is of a run with other tokens, sequence length, number of shards or seed: "
                "resume with the settings and the data that the run began with"
            )
        self._drawn = shards_of(cursor, self._num_shards)

    def next_batch(self) -> torch.Tensor:
        """The next samples, int64 of shape [batch_size, sequence_length + 1]."""
        assert self._drawn, "a stream that holds no shard has no samples"
        samples = [self._next_sample() for _ in range(self._batch_size)]
        return _batch(self._tokens, self._sequence_length, samples)

    def _next_sample(self) -> int:
        # The shard that is behind is drawn from first: shards that came late catch up, then all keep step.
        index = min(self._drawn, key=lambda index: (self._drawn[index], index))
        epoch, place = divmod(self._drawn[index], self._shard_length(index))
        self._drawn[index] += 1
        return self._permutation(index, epoch)(place) * self._num_shards + index

    def _shard_length(self, index: int) -> int:
        return (self.num_samples - index + self._num_shards - 1) // self._num_shards

    def _permutation(self, index: int, epoch: int) -> Permutation:
        key = hashlib.blake2b(f"{self._seed}:{index}:{epoch}".encode(), digest_size=32).digest()
        return Permutation(self._shard_length(index), key)

    def _order_number(self) -> int:
        settings = [self._seed, self._sequence_length, self._num_shards, len(self._tokens)]
        digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=6)
        for probe in (self._tokens[:PROBE_TOKENS], self._tokens[-PROBE_TOKENS:]):
            digest.update(probe.astype("<i8").tobytes())
        return int.from_bytes(digest.digest(), "little")


def hold_out(tokens: Tokens | torch.Tensor, sequence_length: int, num_sequences: int) -> tuple[Tokens, Tokens]:
    """The row without its end, for training, and the end, which is `num_sequences` samples for validation.

    Raises:
        ValueError: nothing would be left to train on.
    """
    row = _as_row(tokens)
    held = num_sequences * sequence_length + 1
    if len(row) < held + sequence_length:
        raise ValueError(
            f"{len(row):,} tokens are too few to hold out {num_sequences} sequences of {sequence_length} and train on "
            f"the rest: take more data, or hold out fewer sequences"
        )
    # They share one token: the last target of the one is only an input of the other.
    return row[: len(row) - held + 1], row[-held:]


def validation_batches(tokens: Tokens | torch.Tensor, sequence_length: int, batch_size: int) -> Iterator[torch.Tensor]:
    """All samples of held-out tokens once, in their order; int64 of shape [batch, sequence_length + 1].

    The last batch may have fewer samples than `batch_size`.
    """
    row = _as_row(tokens)
    count = num_samples(row, sequence_length)
    for start in range(0, count, batch_size):
        yield _batch(row, sequence_length, list(range(start, min(start + batch_size, count))))


def num_samples(tokens: Tokens | torch.Tensor, sequence_length: int) -> int:
    """How many samples a row of tokens has."""
    return max(0, (len(tokens) - 1) // sequence_length)


def _batch(tokens: Tokens, sequence_length: int, samples: Sequence[int]) -> torch.Tensor:
    rows = [tokens[sample * sequence_length :][: sequence_length + 1] for sample in samples]
    return torch.as_tensor(np.stack(rows).astype(np.int64))


def _as_row(tokens: Tokens | torch.Tensor) -> Tokens:
    row = tokens.detach().cpu().numpy() if isinstance(tokens, torch.Tensor) else tokens
    if row.ndim != 1 or row.dtype.kind not in "iu":
        raise ValueError(f"tokens are one row of integers, not {row.dtype} of shape {row.shape}")
    return row


def _check_settings(sequence_length: int, batch_size: int, shards: Sequence[Shard]) -> None:
    if sequence_length < 1 or batch_size < 1:
        raise ValueError(f"a sequence length of {sequence_length} and a batch of {batch_size}: both must be at least 1")
    if not shards:
        raise ValueError("a stream needs at least one shard to draw from")
    if len({shard.num_shards for shard in shards}) > 1:
        raise ValueError("all shards of a stream must be of one cut: their num_shards differ")
    if len({shard.index for shard in shards}) < len(shards):
        raise ValueError("a shard is given twice to one stream: give each once")
