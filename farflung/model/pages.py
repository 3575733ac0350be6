"""Pages of an attention cache: who holds which, and where the next one goes (pure).

A page is room for `PAGE_TOKENS` tokens of one sequence; several sequences may hold the same one, and then nobody writes
to it. A sequence whose pages lie side by side is read without copying, so each is placed where it can grow: the pages
after its own are kept for it as long as there are others. A page kept so is still free, and goes to whoever needs it
when no other is left.
"""

from collections import deque
from collections.abc import Callable, Sequence

PAGE_TOKENS = 32

Rows = list[list[int]]
"""The pages of each row of a batch, in order of their tokens."""


class OutOfPages(Exception):
    """Every page that the budget allows is held by somebody who needs it."""


def num_pages_for(num_tokens: int) -> int:
    """Pages that so many tokens of one sequence take."""
    return -(-num_tokens // PAGE_TOKENS)


def runs(pages: Sequence[int], start: int, end: int) -> list[tuple[int, int]]:
    """Where the tokens [start, end) of a sequence lie, as (first slot, number of slots) of stretches without a gap."""
    found: list[tuple[int, int]] = []
    at = start
    while at < end:
        index = at // PAGE_TOKENS
        first = pages[index] * PAGE_TOKENS + at % PAGE_TOKENS
        until = index + 1
        while until * PAGE_TOKENS < end and pages[until] == pages[until - 1] + 1:
            until += 1
        stop = min(end, until * PAGE_TOKENS)
        found.append((first, stop - at))
        at = stop
    return found


class PageBudget:
    """What all sessions of a server may hold, in pages of one block."""

    def __init__(self, num_block_pages: int) -> None:
        self.num_block_pages = num_block_pages
        self.num_left = num_block_pages
        self.evictions: list[Callable[[], bool]] = []
        """Each makes somebody give up a page that nobody needs now; False if there is none."""

    def take(self, num_blocks: int) -> None:
        """Count a page of so many blocks. Raises OutOfPages: too much is held that is needed."""
        while self.num_left < num_blocks:
            if not any(evict() for evict in self.evictions):
                raise OutOfPages(f"{self.num_left} of {self.num_block_pages} pages of a block are left")
        self.num_left -= num_blocks


class PageAllocator:
    """Hands out the pages of a range of blocks and counts their holders; without a budget, as many as are asked for."""

    def __init__(self, budget: PageBudget | None, num_blocks: int) -> None:
        self._budget = budget
        self._num_blocks = num_blocks
        self._num_pages_max = None if budget is None else budget.num_block_pages // num_blocks
        self._num_holders: list[int] = []
        self._kept_for: list[int] = []
        """Which cache may grow into a page; 0: any."""
        self._num_caches = 0
        self.num_pages = 0
        """Pages that were ever in use: storage must have room for them."""
        self._given_back: deque[tuple[Rows, int]] = deque()

    @property
    def num_held(self) -> int:
        """Pages that somebody holds."""
        self.collect()
        return sum(count > 0 for count in self._num_holders)

    def new_cache(self) -> int:
        """A number for a cache that will ask for pages."""
        self._num_caches += 1
        return self._num_caches

    def is_shared(self, page: int) -> bool:
        """Whether more than one hold it, so that none may write to it."""
        return self._num_holders[page] > 1

    def share(self, page: int) -> None:
        """Somebody more holds the page."""
        assert self._num_holders[page] > 0
        self._num_holders[page] += 1

    def release(self, page: int) -> None:
        """Somebody holds it no longer."""
        assert self._num_holders[page] > 0
        self._num_holders[page] -= 1
        if self._budget is not None and not self._num_holders[page]:
            self._budget.num_left += self._num_blocks

    def give_back(self, rows: Rows, cache: int) -> None:
        """A cache is gone. May be called at any moment from any thread: it takes effect with the next request."""
        self._given_back.append((rows, cache))

    def take(self, after: int | None, cache: int, num_wanted: int) -> int:
        """A page for a cache: the one after its page `after` if it can be, else where `num_wanted` lie side by side.

        Raises:
            OutOfPages: the budget is spent.
        """
        self.collect()
        if self._budget is not None:
            self._budget.take(self._num_blocks)
        page = after + 1 if after is not None else None
        if page is None or not self._is_open(page, cache):
            page = self._place(cache, max(1, num_wanted))
        self._extend(page + 1)
        self._num_holders[page] = 1
        self._kept_for[page] = cache
        self.num_pages = max(self.num_pages, page + 1)
        return page

    def _is_open(self, page: int, cache: int) -> bool:
        if page >= len(self._num_holders):
            return self._num_pages_max is None or page < self._num_pages_max
        return self._num_holders[page] == 0 and self._kept_for[page] in (0, cache)

    def _place(self, cache: int, num_wanted: int) -> int:
        """The first page of a gap, kept for the cache: as long as wanted, or half of that, and so on; else any page."""
        length = num_wanted
        while length:
            start = self._gap(length)
            if start is not None:
                self._extend(start + length)
                self._kept_for[start : start + length] = [cache] * length
                return start
            length //= 2
        return self._num_holders.index(0)  # kept for others, but free: the budget says that there is one

    def _gap(self, num_wanted: int) -> int | None:
        """The first stretch of so many pages that are neither held nor kept."""
        start = 0
        for page, num_holders in enumerate(self._num_holders):
            if num_holders or self._kept_for[page]:
                start = page + 1
            elif page + 1 - start == num_wanted:
                return start
        fits = self._num_pages_max is None or start + num_wanted <= self._num_pages_max
        return start if fits else None

    def _extend(self, num_pages: int) -> None:
        missing = num_pages - len(self._num_holders)
        if missing > 0:
            self._num_holders += [0] * missing
            self._kept_for += [0] * missing

    def collect(self) -> None:
        """Take back what was given back."""
        while self._given_back:
            rows, cache = self._given_back.popleft()
            for row in rows:
                for page in row:
                    self.release(page)
            self._kept_for = [0 if kept == cache else kept for kept in self._kept_for]
