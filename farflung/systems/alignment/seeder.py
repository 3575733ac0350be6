"""Who has chunks gives them: a role beside the hub and beside every worker."""

from collections.abc import Sequence

from farflung.systems.alignment.messages import AlignChunk, AlignChunkAsk
from farflung.world.address import Address
from farflung.world.effects import Effect, Load, Send
from farflung.world.errors import PeerMisbehaved
from farflung.world.role import Role

PREFIX = "align/chunk/"
DIGEST_BYTES = 32


def chunk_key(digest: bytes) -> str:
    """Where a chunk lies in the store."""
    return f"{PREFIX}{digest.hex()}"


class Seeder(Role):
    """Answers each question for a chunk from this node's store."""

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        if not isinstance(message, AlignChunkAsk):
            return ()
        if len(message.digest) != DIGEST_BYTES:
            raise PeerMisbehaved(source.peer, f"it asks for a chunk by a hash of {len(message.digest)} bytes")
        return [Load((source, message.digest), chunk_key(message.digest))]

    def finished(self, job: object, result: object, now: float) -> Sequence[Effect]:
        assert isinstance(job, tuple)
        source, digest = job
        data = result if isinstance(result, bytes) else b""
        return [Send(source, AlignChunk(digest=digest, data=memoryview(data)))]
