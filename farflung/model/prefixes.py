"""Prefixes that were computed before: pages of keys and values by what entered them, kept until room is needed.

A page is named by a hash of its own input and of the name of the page before it, so equal names mean equal texts from
the first token on, and nobody can put anything under a name but what belongs there. With a page its output is kept,
for whoever asks needs that too.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from farflung.model.pages import PAGE_TOKENS, PageAllocator

NAME_BYTES = 32


@dataclass(frozen=True, slots=True)
class KnownPage:
    """One page of a prefix."""

    page: int
    output_TH: Tensor
    """Hidden states that leave the span for its tokens."""


@dataclass(slots=True)
class PrefixIndex:
    """Known pages by name, the least recently used first. It holds the pages, as any cache does."""

    pages: PageAllocator
    _known: OrderedDict[bytes, KnownPage] = field(default_factory=OrderedDict[bytes, KnownPage])

    def __len__(self) -> int:
        return len(self._known)

    def find(self, names: Sequence[bytes]) -> list[KnownPage]:
        """The pages of the longest known prefix; they count as used now, the first of them last of all."""
        found: list[KnownPage] = []
        for name in names:
            known = self._known.get(name)
            if known is None:
                break
            found.append(known)
        for name in reversed(names[: len(found)]):
            self._known.move_to_end(name)
        return found

    def add(self, name: bytes, page: int, output_TH: Tensor) -> None:
        """Keep a page; one that is known already stays as it is."""
        if name not in self._known:
            self.pages.share(page)
            self._known[name] = KnownPage(page, output_TH)

    def evict(self) -> bool:
        """Give up the page that was used longest ago among those that no cache holds; False if there is none."""
        for name, known in self._known.items():
            if not self.pages.is_shared(known.page):
                self.pages.release(known.page)
                del self._known[name]
                return True
        return False


class Trail:
    """What entered and left a span for one sequence since its last whole page, and the name of that page."""

    def __init__(self, seed: bytes) -> None:
        self.name = seed
        self.num_pages = 0
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def names(self, input_TH: Tensor) -> list[bytes]:
        """Names of the whole pages of a sequence that starts here."""
        names: list[bytes] = []
        name = self.name
        for page in input_TH.split(PAGE_TOKENS):
            if page.shape[0] == PAGE_TOKENS:
                name = _name(name, page)
                names.append(name)
        return names

    def skip(self, names: Sequence[bytes]) -> None:
        """These pages were found."""
        if names:
            self.name = names[-1]
            self.num_pages += len(names)

    def follow(self, input_TH: Tensor, output_TH: Tensor) -> list[tuple[bytes, int, Tensor]]:
        """Note computed tokens; the pages that they complete: name, number in the sequence, and output."""
        self._inputs.append(input_TH)
        self._outputs.append(output_TH)
        if sum(piece.shape[0] for piece in self._inputs) < PAGE_TOKENS:
            return []
        inputs, outputs = torch.cat(self._inputs), torch.cat(self._outputs)
        complete: list[tuple[bytes, int, Tensor]] = []
        num_whole = inputs.shape[0] // PAGE_TOKENS
        for start in range(0, num_whole * PAGE_TOKENS, PAGE_TOKENS):
            self.name = _name(self.name, inputs[start : start + PAGE_TOKENS])
            complete.append((self.name, self.num_pages, outputs[start : start + PAGE_TOKENS].clone()))
            self.num_pages += 1
        self._inputs, self._outputs = [inputs[num_whole * PAGE_TOKENS :]], [outputs[num_whole * PAGE_TOKENS :]]
        return complete


def _name(before: bytes, page_TH: Tensor) -> bytes:
    digest = hashlib.blake2b(before, digest_size=NAME_BYTES)
    digest.update(page_TH.contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
