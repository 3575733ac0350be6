"""A corpus that every machine has: modules of Python's own standard library."""

import sysconfig
from pathlib import Path

FILE_BYTES = range(4_000, 60_000)
"""Shorter files say little, longer ones are mostly tables."""
CHARACTERS_MAX = 500_000
"""As much as a minute and a half of training reads about twice."""


def standard_library() -> list[str]:
    """The text of modules that lie directly in the library's folder, evenly chosen, in order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(root.glob("*.py")) if path.stat().st_size in FILE_BYTES]
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in paths]
    stride = max(1, round(sum(map(len, texts)) / CHARACTERS_MAX))
    return texts[::stride]
