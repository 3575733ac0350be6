"""How many bytes of memory an object keeps: its own, and of all that is reached from it."""

from __future__ import annotations

import gc
import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

NOT_COUNTED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
"""What all nodes of a process share."""


def reachable_bytes(root: object) -> int:
    """Sum over everything that is reached from `root`, each once; code and classes are left out."""
    seen: set[int] = set()
    waiting, total = [root], 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, NOT_COUNTED):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        waiting += gc.get_referents(one)
    return total
