"""Philox 4x32-10 in torch: counter-based random bits that are the same on every device.

Algorithm: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 4.3. The words
are checked against the known answers of its authors' library (Random123).
"""

import torch

WORD_MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
"""Weyl constants: the golden ratio and the square root of 3 less 1, in units of 2^-32."""
NUM_ROUNDS = 10
BLOCK_BYTES = 16


def philox4x32(counters: torch.Tensor, key: tuple[int, int]) -> torch.Tensor:
    """Random words int64 [..., 4], each in [0, 2^32), of counters int64 [..., 4] in the same range, lowest word first.

    `key`: two words below 2^32.
    """
    word0, word1, word2, word3 = counters.unbind(-1)
    key0, key1 = key
    for _ in range(NUM_ROUNDS):
        high0, low0 = _product(word0, MULTIPLIERS[0])
        high1, low1 = _product(word2, MULTIPLIERS[1])
        word0, word1, word2, word3 = high1 ^ word1 ^ key0, low1, high0 ^ word3 ^ key1, low0
        key0, key1 = (key0 + KEY_STEPS[0]) & WORD_MASK, (key1 + KEY_STEPS[1]) & WORD_MASK
    return torch.stack((word0, word1, word2, word3), dim=-1)


def _product(words: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of the 64-bit products; int64 wraps, and masks undo the sign that this may set."""
    product = words * multiplier
    return (product >> 32) & WORD_MASK, product & WORD_MASK


def philox_bytes(key: tuple[int, int], first_block: int, num_blocks: int, device: torch.device) -> torch.Tensor:
    """The bytes of consecutive blocks of 16, uint8 [num_blocks * 16], words in little-endian order."""
    numbers = torch.arange(first_block, first_block + num_blocks, dtype=torch.int64, device=device)
    zeros = torch.zeros_like(numbers)
    words = philox4x32(torch.stack((numbers & WORD_MASK, numbers >> 32, zeros, zeros), dim=-1), key)
    shifts = torch.arange(0, 32, 8, dtype=torch.int64, device=device)
    return ((words.unsqueeze(-1) >> shifts) & 0xFF).to(torch.uint8).flatten()
