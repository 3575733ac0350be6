"""Shared randomness from raw integer bits: every machine gets the same bits for the same slot of the same round.

A stream belongs to (run, round, tensor): its key is their BLAKE2b hash. Slot s of that round owns the s-th stretch of
the stream, of as many blocks as the tensor's direction needs, so that whoever needs many slots draws them in one call
and whoever needs one draws only that. Nothing depends on who measures. Bits are used as they are, never through
floating point, because only they are promised to be equal on all machines and in all releases.
"""

import hashlib
import struct

import numpy as np
import torch

from farflung.systems.onebyte.philox import BLOCK_BYTES, philox_bytes

PERSONALIZATION = b"farflung onebyte"
KEY_BYTES = 16
STRETCH_BYTES = 32
"""A slot begins at a multiple of this many bytes: one block of Philox 4x64, two of Philox 4x32."""
GENERATORS = ("philox4x64", "philox4x32")
"""NumPy's (fastest on processors) and ours in torch (for accelerators): each is the same on all machines."""


def stream_key(run: bytes, round_number: int, tensor: str) -> bytes:
    """The 16 bytes that key a tensor's bits in one round of a run (whose id has 16 bytes)."""
    content = run + struct.pack("<Q", round_number) + tensor.encode()
    return hashlib.blake2b(content, digest_size=KEY_BYTES, person=PERSONALIZATION).digest()


def slot_bytes(
    generator: str, key: bytes, first_slot: int, num_slots: int, num_bytes: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Random bytes of consecutive slots, uint8 [num_slots, num_bytes] on `device`."""
    stretch = -(-num_bytes // STRETCH_BYTES) * STRETCH_BYTES
    if generator == "philox4x64":
        rows = torch.from_numpy(_numpy_bytes(key, first_slot * stretch, num_slots * stretch)).to(device)
    else:
        assert generator == "philox4x32", f"unknown generator {generator}"
        words = struct.unpack("<II", key[:8])
        first_block, num_blocks = first_slot * stretch // BLOCK_BYTES, num_slots * stretch // BLOCK_BYTES
        rows = philox_bytes((words[0], words[1]), first_block, num_blocks, torch.device(device))
    return rows.view(num_slots, stretch)[:, :num_bytes]


def _numpy_bytes(key: bytes, first_byte: int, num_bytes: int) -> np.ndarray:
    generator = np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64))
    generator.advance(first_byte // STRETCH_BYTES)
    return generator.random_raw(num_bytes // 8).astype("<u8", copy=False).view(np.uint8)


def signs_of(bits: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` bits of each row of bytes as int8 [rows, count]: bit 0 is +1, bit 1 is -1, lowest bit first."""
    if bits.device.type == "cpu":
        ones = torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=count, bitorder="little"))
        return ones.view(torch.int8).mul_(-2).add_(1)
    return signs_by_torch(bits, count)


def signs_by_torch(bits: torch.Tensor, count: int) -> torch.Tensor:
    """The same on any device."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    ones = ((bits.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :count].to(torch.int8)
    return ones.mul_(-2).add_(1)
