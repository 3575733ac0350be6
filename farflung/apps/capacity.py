"""How many blocks fit a machine, and how much cache beside them."""

import psutil
import torch

from farflung.model.budget import block_bytes, bytes_per_token
from farflung.model.source import ModelSource

USABLE_SHARE = 0.8
"""Of the memory that is free now; the rest is for activations and for whatever else runs there."""
CACHE_TOKENS_DEFAULT = 16_384


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses now; not what the machine has in all, for others use it too."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def fitting_blocks(num_bytes: int, num_bytes_per_block: int, num_blocks: int, what: str) -> int:
    """How many blocks of `num_bytes_per_block` (weights and cache) fit into the usable share of `num_bytes`.

    Raises:
        ValueError: not one fits.
    """
    num_fitting = int(num_bytes * USABLE_SHARE) // num_bytes_per_block
    if num_fitting < 1:
        raise ValueError(
            f"not one block of {what} fits: it takes {num_bytes_per_block / 2**20:.0f} MiB with its cache, and "
            f"{num_bytes / 2**20:.0f} MiB are free; free some memory, lower --cache-tokens, or choose a smaller --dtype"
        )
    return min(num_fitting, num_blocks)


def capacity_blocks(
    source: ModelSource,
    device: torch.device,
    dtype: torch.dtype,
    num_cache_tokens: int,
    *,
    num_weight_copies: int = 1,
) -> int:
    """How many blocks of `source` this machine can hold, each with its part of the cache."""
    per_block = num_weight_copies * block_bytes(source, dtype) + num_cache_tokens * bytes_per_token(source, dtype)
    return fitting_blocks(free_bytes(device), per_block, source.num_blocks, source.name)


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is an accelerator if there is one.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        is_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if is_mps else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device {name!r} cannot be used here ({reason}); choose --device cpu") from None
    return device


def choose_dtype(name: str, source: ModelSource, device: torch.device) -> torch.dtype:
    """The type of that name; "auto" is float32 on a CPU, where it is exact and quick, else the checkpoint's own.

    Raises:
        ValueError: none of the types that blocks can have.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else source.dtype
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in types:
        raise ValueError(f"--dtype must be auto or one of {', '.join(types)}, not {name!r}")
    return types[name]
