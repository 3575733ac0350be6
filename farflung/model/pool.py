"""The memory of attention caches: the keys and values of all sessions on the same blocks, in pages.

Sessions never see each other's: which slots belong to whom, the pages say. Slots of one head lie side by side, so that
attention reads what it needs in one stretch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from farflung.model.pages import PAGE_TOKENS, PageAllocator, PageBudget
from farflung.model.prefixes import PrefixIndex

CAPACITY_TOKENS_MIN = 64
"""Tokens that fresh storage has room for; it doubles whenever it is full."""


class CachePool:
    """Room for keys and values of all sessions on the same blocks: each [heads, slots, head dimension] per block."""

    def __init__(self, num_blocks: int, budget: PageBudget | None = None) -> None:
        """For sessions on the same `num_blocks` blocks; `budget` None: as many as come. Memory is taken when needed."""
        self.pages = PageAllocator(budget, num_blocks)
        self.prefixes = PrefixIndex(self.pages)
        self._blocks: dict[int, tuple[Tensor, Tensor]] = {}
        if budget is not None:
            budget.evictions.append(self._evict)

    def _evict(self) -> bool:
        self.pages.collect()
        return self.prefixes.evict()

    def shrink(self) -> None:
        """Free the memory if no page is held."""
        if self.pages.num_held == 0:
            self._blocks.clear()

    def storage(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """A block's keys and values, with room for all pages in use; new ones [batch, heads, tokens, dimension] say
        their sizes."""
        if block not in self._blocks:
            self._blocks[block] = (_rows_of(keys[0], 0), _rows_of(values[0], 0))
        return self._with_room(block)

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page in all blocks."""
        for block in self._blocks:
            for tensor in self._with_room(block):
                page = tensor.narrow(1, source * PAGE_TOKENS, PAGE_TOKENS)
                tensor.narrow(1, target * PAGE_TOKENS, PAGE_TOKENS).copy_(page)

    def bytes_of(self, block: int) -> int:
        """Memory of a block's keys and values, spare capacity included."""
        return sum(tensor.nbytes for tensor in self._blocks.get(block, ()))

    def _with_room(self, block: int) -> tuple[Tensor, Tensor]:
        """A block's storage, grown if pages are in use that it has no room for."""
        keys, values = self._blocks[block]
        if keys.shape[1] < self.pages.num_pages * PAGE_TOKENS:
            num_slots = CAPACITY_TOKENS_MIN
            while num_slots < self.pages.num_pages * PAGE_TOKENS:
                num_slots *= 2
            keys, values = self._blocks[block] = (_rows_of(keys, num_slots), _rows_of(values, num_slots))
        return keys, values


def _rows_of(held_HSD: Tensor, num_slots: int) -> Tensor:
    """The same with so many slots, the additional ones unset; with none, an empty tensor of the same sizes."""
    num_heads, num_held, dimension = held_HSD.shape
    fresh = held_HSD.new_empty((num_heads, num_slots, dimension))
    if num_slots:
        fresh.narrow(1, 0, num_held).copy_(held_HSD)
    return fresh


def write(storage: Tensor, new_HTD: Tensor, places: Sequence[tuple[int, int]]) -> None:
    """Put the new tokens of one row in their places."""
    done = 0
    for first, number in places:
        storage.narrow(1, first, number).copy_(new_HTD.narrow(1, done, number))
        done += number


def read(storage: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """Tokens [heads, tokens, dimension] of one row: a view if they lie side by side."""
    if len(places) == 1:
        return storage.narrow(1, *places[0])
    return torch.cat([storage.narrow(1, *place) for place in places], dim=1)
