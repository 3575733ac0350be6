"""Freed memory: kept where the next message needs it, handed back once after a model has been loaded."""

import ctypes
import gc
import os
import sys

MEMORY_KEPT_BYTES = 64 << 20
"""Freed memory that a process keeps at most."""
MAPPED_APART_BYTES = 32 << 20
"""Blocks from this size on always come fresh from the kernel, and go back to it."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt(3)."""


def keep_freed_memory() -> None:
    """Tell glibc's malloc to keep what messages need again and again.

    By default it gives memory back as soon as a few MB are free; on virtual machines taking it again costs more than
    copying a large message does (measured: a transfer of 128 MB took half as long again). Elsewhere nothing is done,
    nor where the user has set such a threshold.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, MEMORY_KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, MAPPED_APART_BYTES)


def return_freed_memory() -> None:
    """Give back at once what is free in all threads' heaps, as loading weights leaves it; glibc only."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
