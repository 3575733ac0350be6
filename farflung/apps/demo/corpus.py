"""A corpus that every machine has: the source of Python's own standard library."""

import sysconfig
from pathlib import Path

FILE_BYTES_MAX = 200_000
"""Longer files are mostly tables."""

SKIPPED_FOLDERS = ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings", "__pycache__")
"""Tests, tables, and whatever users installed."""


def standard_library() -> list[str]:
    """The text of its modules, in order of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    texts: list[str] = []
    for path in sorted(root.rglob("*.py")):
        is_skipped = any(part in SKIPPED_FOLDERS for part in path.relative_to(root).parts[:-1])
        if is_skipped or path.stat().st_size > FILE_BYTES_MAX:
            continue
        texts.append(path.read_text(encoding="utf-8", errors="ignore"))
    return texts
