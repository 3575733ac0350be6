"""The keys and values that a span's blocks keep for one session, with exact rollback and reordering.

Every token is kept, in sliding-window blocks too, so that truncating to any earlier length is exact; a sliding block
hands out only the window that transformers expects, so masks and attention cost stay those of the window.
Invariant: `length` moves only when a forward has passed through all of its blocks, so a forward that failed half-way
left nothing behind.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, get_layer_types_and_kwargs

NOTHING = torch.empty(0, 0, 0, 0)
CAPACITY_TOKENS_MIN = 64
"""Tokens that a fresh buffer has room for; it doubles whenever it is full."""


def windows_of(config: PreTrainedConfig) -> list[int | None]:
    """Each block's attention window in tokens, None where it sees everything; as transformers' own cache decides it."""
    _, kwargs = get_layer_types_and_kwargs(config)
    return [each.get("sliding_window") for each in kwargs]


class BlockCache:
    """One block's keys and values, each [batch, heads, capacity, head dimension]; only the first tokens are filled."""

    __slots__ = ("capacity", "keys", "values", "window")

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.keys = self.values = NOTHING
        self.capacity = 0

    def append(self, keys: Tensor, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Write new keys and values after `length` tokens; returns what attention may see, oldest first."""
        num_new = keys.shape[2]
        end = length + num_new
        if end > self.capacity or self.keys.shape[0] != keys.shape[0]:
            self._grow(keys, values, length, end)
        start = 0 if self.window is None else max(0, length - self.window + 1)
        self.keys.narrow(2, length, num_new).copy_(keys)
        self.values.narrow(2, length, num_new).copy_(values)
        return self.keys.narrow(2, start, end - start), self.values.narrow(2, start, end - start)

    def _grow(self, keys: Tensor, values: Tensor, length: int, end: int) -> None:
        capacity = CAPACITY_TOKENS_MIN
        while capacity < end:
            capacity *= 2
        old = (self.keys, self.values)
        self.keys, self.values = (
            new.new_empty((new.shape[0], new.shape[1], capacity, new.shape[3])) for new in (keys, values)
        )
        self.capacity = capacity
        if length:
            self.keys.narrow(2, 0, length).copy_(old[0].narrow(2, 0, length))
            self.values.narrow(2, 0, length).copy_(old[1].narrow(2, 0, length))

    def select(self, indices: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may repeat."""
        indices = indices.to(self.keys.device)
        self.keys = self.keys.index_select(0, indices)
        self.values = self.values.index_select(0, indices)

    @property
    def bytes(self) -> int:
        """Memory held, spare capacity included."""
        return self.keys.nbytes + self.values.nbytes


class SpanCache(Cache):
    """The attention cache of blocks [first, last), seen by transformers under the blocks' absolute numbers."""

    def __init__(self, config: PreTrainedConfig, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.length = 0
        self._batch_size = 0
        self._windows = windows_of(config)
        self._is_sliding = [window is not None for window in self._windows]
        self._blocks = [BlockCache(window) for window in self._windows[first:last]]
        super().__init__(layers=[])

    @property
    def batch_size(self) -> int:
        """Sequences held side by side, 0 before the first forward."""
        return self._batch_size

    @property
    def num_tokens(self) -> int:
        """Tokens held, over the whole batch: what budgets count."""
        return self.batch_size * self.length

    @property
    def bytes(self) -> int:
        """Memory held by all blocks, spare capacity included."""
        return sum(block.bytes for block in self._blocks)

    def expect(self, batch_size: int) -> None:
        """Check that a forward's batch is the one the cache holds; a ValueError says which it is."""
        if self.length == 0:
            self._batch_size = batch_size
        elif batch_size != self.batch_size:
            raise ValueError(
                f"the cache holds a batch of {self.batch_size} and was given {batch_size}: send the same, or reorder it"
            )

    def advance(self, num_new: int) -> None:
        """Count the tokens of a forward that passed through all blocks."""
        self.length += num_new

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first `length`, exactly; nothing is copied."""
        if not 0 <= length <= self.length:
            raise ValueError(
                f"the cache holds {self.length} tokens and cannot be cut to {length}: give a shorter length"
            )
        self.length = length

    @torch.inference_mode()
    def reorder(self, indices: Tensor) -> None:
        """Make the batch these rows of itself, in this order (beam search; also repeats and selections)."""
        if indices.ndim != 1 or (self.length and not _are_rows(indices, self.batch_size)):
            raise ValueError(f"reordering takes rows of a batch of {self.batch_size}: give a list of numbers below it")
        if self.length == 0:
            self._batch_size = len(indices)
        elif indices.tolist() != list(range(self.batch_size)):
            for block in self._blocks:
                block.select(indices)
            self._batch_size = len(indices)

    # What transformers asks of a cache. Sizes depend on the kind of block alone: any block may be asked for.

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a block's new keys and values [batch, heads, tokens, dimension]; returns what its attention may see."""
        return self._blocks[layer_idx - self.first].append(key_states, value_states, self.length)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens held before this forward."""
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Position of this forward's first token."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of keys that a block's attention is handed, and the position of the first."""
        window = self._windows[layer_idx]
        offset = 0 if window is None else max(0, self.length - window + 1)
        return self.length + query_length - offset, offset

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No limit of its own (-1)."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, given as a negative number."""
        self.truncate(self.length - abs(tokens_to_remove))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch."""
        self.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.reorder(torch.arange(self.batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.reorder(indices)

    def activate_past_recording(self) -> None:
        """Nothing to do: every token is always kept."""

    def reset(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def __len__(self) -> int:
        return self.last - self.first

    @property
    def is_sliding(self) -> list[bool]:
        """Of every block of the model, by absolute number."""
        return self._is_sliding

    @property
    def is_linear(self) -> list[bool]:
        """No block keeps a recurrent state."""
        return [False] * len(self._windows)

    @property
    def is_dummy(self) -> list[bool]:
        """Every block keeps keys and values."""
        return [False] * len(self._windows)

    @property
    def is_compileable(self) -> bool:
        """Buffers grow, so shapes are not static."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether any token is held."""
        return self.length > 0

    @property
    def is_croppable(self) -> bool:
        """Rolling back leaves no trace."""
        return True


def _are_rows(indices: Tensor, batch_size: int) -> bool:
    return len(indices) > 0 and int(indices.min()) >= 0 and int(indices.max()) < batch_size
