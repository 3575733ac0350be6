"""Messages of a file transfer: a manifest of hashed chunks, then the chunks that are missing.

taker ── TransferAsk(name) ─────────────> giver
      <── TransferManifest(hashes) ──────
      ── TransferChunkAsk(index) ───────>      for each chunk that is missing, several at once
      <── TransferChunk(index, data) ────
"""

from farflung.wire.message import Message

CHUNK_BYTES = 8 << 20
"""What is hashed, asked for, and at worst sent twice; some seconds of a slow link."""
FILE_BYTES_MAX = 1 << 42


class TransferAsk(Message):
    """What is the file called `name`?"""

    name: str


class TransferManifest(Message):
    """Its size, and the SHA-256 of every chunk of `CHUNK_BYTES` (the last one shorter), in order."""

    name: str
    num_bytes: int
    hashes: tuple[bytes, ...]

    def is_sound(self) -> bool:
        """Whether size and hashes fit each other and the limits."""
        is_size = 0 <= self.num_bytes <= FILE_BYTES_MAX
        return is_size and len(self.hashes) == num_chunks(self.num_bytes) and all(len(one) == 32 for one in self.hashes)


class TransferChunkAsk(Message):
    """Send this chunk."""

    name: str
    index: int


class TransferChunk(Message):
    """It."""

    name: str
    index: int
    data: memoryview


def num_chunks(num_bytes: int) -> int:
    """How many chunks a file of this size has."""
    return -(-num_bytes // CHUNK_BYTES)


def chunk_range(num_bytes: int, index: int) -> tuple[int, int]:
    """(first byte, byte past the last) of a chunk."""
    return index * CHUNK_BYTES, min((index + 1) * CHUNK_BYTES, num_bytes)
