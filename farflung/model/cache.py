"""The keys and values that a span's blocks keep: pages in a pool that sessions share, with exact rollback.

Every token is kept, in sliding-window blocks too, so that truncating to any earlier length is exact; a sliding block
hands out only the window that transformers expects, so masks and attention cost stay those of the window. Rows that
were equal share pages until one of them writes (reordering copies nothing), and whole pages of a prefix that was
computed before are taken over.
Invariant: `length` moves only when a forward has passed through all of its blocks, so a forward that failed half-way
left nothing behind.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, get_layer_types_and_kwargs

from farflung.model.pages import PAGE_TOKENS, Rows, num_pages_for, runs
from farflung.model.pool import CachePool, read, write
from farflung.model.prefixes import Trail


def windows_of(config: PreTrainedConfig) -> list[int | None]:
    """Each block's attention window in tokens, None where it sees everything; as transformers' own cache decides it."""
    _, kwargs = get_layer_types_and_kwargs(config)
    return [each.get("sliding_window") for each in kwargs]


class SpanCache(Cache):
    """The attention cache of blocks [first, last), seen by transformers under the blocks' absolute numbers.

    Its pages go back to the pool when it is gone.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        first: int,
        last: int,
        pool: CachePool | None = None,
        num_tokens_expected: int = 1,
    ) -> None:
        """`pool` None: one of its own. `num_tokens_expected` of each row is a hint for where to put it."""
        self.first = first
        self.last = last
        self.length = 0
        self.pool = pool if pool is not None else CachePool(last - first)
        self.rows: Rows = []
        self._batch_size = 0
        self._windows = windows_of(config)
        self._is_sliding = [window is not None for window in self._windows]
        self._num_pages_expected = num_pages_for(num_tokens_expected)
        self._number = self.pool.pages.new_cache()
        self._layouts: dict[tuple[int, int], list[list[tuple[int, int]]]] = {}
        self._trail: Trail | None = Trail(f"{first}:{last}".encode())
        self._finalizer = weakref.finalize(self, self.pool.pages.give_back, self.rows, self._number)
        self._finalizer.atexit = False
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
        """Memory held by all blocks of the pool, spare capacity included."""
        return sum(self.pool.bytes_of(block) for block in range(self.first, self.last))

    def expect(self, batch_size: int, num_new: int) -> None:
        """Make room for a forward of so many rows and new tokens each.

        Raises:
            ValueError: the cache holds another batch; the sentence says which.
            OutOfPages: there is no room; what is held stays as it is.
        """
        if self.length == 0 and batch_size != self._batch_size:
            self._release_from(0)
            self.rows[:] = [[] for _ in range(batch_size)]
            self._batch_size = batch_size
        elif batch_size != self.batch_size:
            raise ValueError(
                f"the cache holds a batch of {self.batch_size} and was given {batch_size}: send the same, or reorder it"
            )
        for row in self.rows:
            self._make_writable(row, self.length + num_new)
        self._layouts.clear()

    def _make_writable(self, pages: list[int], end: int) -> None:
        """Pages up to token `end` of a row, those from the present length on held by nobody else."""
        pool = self.pool.pages
        for index in range(self.length // PAGE_TOKENS, num_pages_for(end)):
            if index < len(pages) and not pool.is_shared(pages[index]):
                continue
            num_wanted = max(num_pages_for(end), self._num_pages_expected) - index
            fresh = pool.take(pages[index - 1] if index else None, self._number, num_wanted)
            if index == len(pages):
                pages.append(fresh)
                continue
            if index * PAGE_TOKENS < self.length:
                self.pool.copy_page(pages[index], fresh)
            pool.release(pages[index])
            pages[index] = fresh

    def places(self, start: int, end: int) -> list[list[tuple[int, int]]]:
        """Where the tokens [start, end) of each row lie: stretches of slots, as (first, number)."""
        found = self._layouts.get((start, end))
        if found is None:
            found = self._layouts[start, end] = [runs(pages, start, end) for pages in self.rows]
        return found

    @property
    def is_scattered(self) -> bool:
        """Whether a family's own attention would be handed copies, because not all lies in one stretch."""
        return self.batch_size > 1 or any(len(runs(pages, 0, self.length)) > 1 for pages in self.rows)

    def release(self) -> None:
        """Give all pages back, before this object goes; it is not to be used any more."""
        self._finalizer()

    def window_start(self, block: int) -> int:
        """The first token that a block's attention is handed in the forward under way."""
        window = self._windows[block]
        return 0 if window is None else max(0, self.length - window + 1)

    def window(self, block: int) -> int | None:
        """Tokens that a block's attention sees at most."""
        return self._windows[block]

    def advance(self, num_new: int) -> None:
        """Count the tokens of a forward that passed through all blocks."""
        self.length += num_new

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first `length`, exactly; nothing is copied."""
        if not 0 <= length <= self.length:
            raise ValueError(
                f"the cache holds {self.length} tokens and cannot be cut to {length}: give a shorter length"
            )
        if length < self.length:
            self._trail = None
        self.length = length
        self._release_from(num_pages_for(length))

    @torch.inference_mode()
    def reorder(self, indices: Tensor) -> None:
        """Make the batch these rows of itself, in this order (beam search; also repeats and selections)."""
        if indices.ndim != 1 or (self.length and not _are_rows(indices, self.batch_size)):
            raise ValueError(f"reordering takes rows of a batch of {self.batch_size}: give a list of numbers below it")
        if self.length == 0:
            self._release_from(0)
            self.rows[:] = [[] for _ in range(len(indices))]
        elif indices.tolist() != list(range(self.batch_size)):
            fresh = [list(self.rows[row]) for row in indices.tolist()]
            for page in (page for row in fresh for page in row):
                self.pool.pages.share(page)
            self._release_from(0)
            self.rows[:] = fresh
            self._trail = None
        self._batch_size = len(indices)

    def _release_from(self, index: int) -> None:
        for pages in self.rows:
            for page in pages[index:]:
                self.pool.pages.release(page)
            del pages[index:]

    def adopt(self, hidden_TH: Tensor, adapter: str = "") -> Tensor | None:
        """Take over the keys and values of the longest known stretch, under the adapter of that name, of what is about
        to enter a cache of one row that is empty, or full to the end of a page; its output [tokens, H], or None if
        nothing is known."""
        if self.length == 0:
            self._trail = Trail(f"{self.first}:{self.last} {hidden_TH.dtype} {adapter}".encode())
        if self._trail is None or self._trail.num_pages * PAGE_TOKENS != self.length:
            return None
        names = self._trail.names(hidden_TH)
        known = self.pool.prefixes.find(names)
        if not known:
            return None
        self._release_from(self._trail.num_pages)
        for each in known:
            self.pool.pages.share(each.page)
        self.rows[:] = [[*(self.rows[0] if self.length else []), *(each.page for each in known)]]
        self._batch_size = 1
        self._trail.skip(names[: len(known)])
        self.advance(len(known) * PAGE_TOKENS)
        return torch.cat([each.output_TH for each in known])

    def remember(self, hidden_TH: Tensor, output_TH: Tensor) -> None:
        """Let others take over what has just been computed for a row without padding, whose positions count on from
        0; `forget_prefix` is to be called for all else."""
        if self._trail is not None:
            for name, number, output in self._trail.follow(hidden_TH, output_TH):
                self.pool.prefixes.add(name, self.rows[0][number], output)

    def forget_prefix(self) -> None:
        """What comes now depends on more than what enters: nobody may take it over."""
        self._trail = None

    # What transformers asks of a cache. Sizes depend on the kind of block alone: any block may be asked for.

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a block's new keys and values [batch, heads, tokens, dimension]; returns what its attention may see."""
        keys, values = self.pool.storage(layer_idx, key_states, value_states)
        end = self.length + key_states.shape[2]
        for row, places in enumerate(self.places(self.length, end)):
            write(keys, key_states[row], places)
            write(values, value_states[row], places)
        seen = self.places(self.window_start(layer_idx), end)
        if len(seen) == 1:
            return read(keys, seen[0]).unsqueeze(0), read(values, seen[0]).unsqueeze(0)
        return torch.stack([read(keys, each) for each in seen]), torch.stack([read(values, each) for each in seen])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens held before this forward."""
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Position of this forward's first token."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of keys that a block's attention is handed, and the position of the first."""
        offset = self.window_start(layer_idx)
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
