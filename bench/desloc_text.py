"""The text of `desloc`: Python's standard library whole, or parted by what is written in it, for sites that differ.

Comments and docstrings make one kind, statements the other; each kind is cut in two. Characters that follow one another
are told apart well: the mean relative entropy of one part's pairs of characters to another's is about 0.3 nats, three
times that of four parts in alphabetical order.
"""

from __future__ import annotations

import functools
import io
import tokenize

import numpy as np

from farflung.learn.corpus import standard_library
from farflung.learn.stream import Tokens


@functools.cache
def whole(characters_max: int | None) -> Tokens:
    """All modules, or about `characters_max` characters of them, as characters below 128."""
    return _encoded(standard_library(characters_max))


@functools.cache
def parts(characters_max: int | None) -> tuple[Tokens, ...]:
    """Prose of the first half of the modules, of the second, statements of the first, of the second."""
    kinds = [parted(text) for text in standard_library(characters_max)]
    halves = kinds[: len(kinds) // 2], kinds[len(kinds) // 2 :]
    return tuple(_encoded([texts[kind] for texts in half]) for kind in (0, 1) for half in halves)


def parted(text: str) -> tuple[str, str]:
    """A module's lines of comments and docstrings, and the others."""
    lines = io.StringIO(text).readlines()
    is_prose = [False] * len(lines)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_alone = token.line[: token.start[1]].strip() == ""
        is_text = token.type == tokenize.STRING and token.string.lstrip("rRuUbB").startswith(('"""', "'''"))
        if is_alone and (is_text or token.type == tokenize.COMMENT):
            first, last = token.start[0] - 1, token.end[0]
            is_prose[first:last] = [True] * (last - first)
    told = [[line for line, is_one in zip(lines, is_prose, strict=True) if is_one is kind] for kind in (True, False)]
    return "".join(told[0]), "".join(told[1])


def _encoded(texts: list[str]) -> Tokens:
    return np.frombuffer("".join(texts).encode("ascii", "replace"), dtype=np.uint8).astype(np.uint16)
