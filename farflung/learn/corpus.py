"""A corpus that every machine has: modules of Python's own standard library."""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from farflung.learn.documents import Piece

FILE_BYTES = range(4_000, 60_000)
"""Shorter files say little, longer ones are mostly tables."""
FOLDERS_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data"})
"""What users installed differs by machine, tests repeat themselves, and the rest are tables."""


def standard_library(characters_max: int | None = None) -> list[str]:
    """The text of its modules in order of their names; about `characters_max` characters of them, evenly chosen."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(root).as_posix() for path in _modules(root))
    paths = [root / name for name in names]
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in paths if path.stat().st_size in FILE_BYTES]
    num_characters = sum(map(len, texts))
    stride = 1 if characters_max is None else max(1, round(num_characters / characters_max))
    return texts[::stride]


def _modules(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in FOLDERS_LEFT_OUT:
            yield from _modules(path)
        elif path.suffix == ".py":
            yield path


class StandardLibrary:
    """The whole corpus as a source of documents, one for each module."""

    name = "Python's standard library"

    def __init__(self) -> None:
        self._texts = standard_library()

    def fingerprint(self) -> str:
        """A hash of the texts; versions of Python differ in it."""
        return hashlib.sha256("\0".join(self._texts).encode(errors="surrogatepass")).hexdigest()

    def pieces(self) -> Iterator[Piece]:
        """One piece for each document."""
        return (Piece(text, ends_document=True) for text in self._texts)
