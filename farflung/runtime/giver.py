"""The giving end of file transfers: an actor that serves files by name, hashed when first asked for."""

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path

from farflung.wire.message import Message, Refusal
from farflung.wire.transfer import (
    CHUNK_BYTES,
    TransferAsk,
    TransferChunk,
    TransferChunkAsk,
    TransferManifest,
    chunk_range,
    num_chunks,
)
from farflung.world.address import Address, PeerId
from farflung.world.doors import World

NUM_QUESTIONS_MAX = 256
"""Questions that may wait for the disk; more are refused, to be asked again."""


class Giver:
    """Gives until `close`. Reading and hashing happen in a thread, one question after another."""

    def __init__(self, world: World, actor: str, files: Mapping[str, Path]) -> None:
        """`files`: what each name stands for. Nothing else is given, whatever name a peer asks for."""
        self._world = world
        self._actor = actor
        self._files = dict(files)
        self._manifests: dict[str, tuple[tuple[int, int], TransferManifest]] = {}
        self._questions: asyncio.Queue[tuple[Address, TransferAsk | TransferChunkAsk]] = asyncio.Queue()
        world.network.listen(actor, self)
        self._working = asyncio.create_task(self._work())

    def close(self) -> None:
        """Give no more."""
        self._world.network.unlisten(self._actor)
        self._working.cancel()

    def deliver(self, source: Address, message: object) -> None:
        if not isinstance(message, TransferAsk | TransferChunkAsk):
            self._world.note(self._actor, f"{source.peer} sent a {type(message).__name__} where files are given")
        elif self._questions.qsize() >= NUM_QUESTIONS_MAX:
            busy = Refusal(reason="too many ask for files at once", retry_after_seconds=1.0)
            self._world.network.send(self._actor, source, busy)
        else:
            self._questions.put_nowait((source, message))

    def lost(self, peer: PeerId, reason: str) -> None:
        """Nothing is kept for a taker; it asks again when it is back."""

    async def _work(self) -> None:
        while True:
            source, question = await self._questions.get()
            answer = await asyncio.to_thread(self._answer, question)
            self._world.network.send(self._actor, source, answer)

    def _answer(self, question: TransferAsk | TransferChunkAsk) -> Message:
        path = self._files.get(question.name)
        if path is None:
            return Refusal(reason=f"there is no file called {question.name[:200]!r} here")
        try:
            if isinstance(question, TransferAsk):
                return self._manifest(question.name, path)
            return _chunk(question, path)
        except OSError as error:
            return Refusal(reason=f"the file {question.name!r} cannot be read: {error.strerror}")

    def _manifest(self, name: str, path: Path) -> TransferManifest:
        status = path.stat()
        stamp = status.st_size, status.st_mtime_ns
        known = self._manifests.get(name)
        if known is None or known[0] != stamp:
            hashes = tuple(chunk_hashes(path, status.st_size))
            known = self._manifests[name] = stamp, TransferManifest(name=name, num_bytes=stamp[0], hashes=hashes)
        return known[1]


def chunk_hashes(path: Path, num_bytes: int) -> list[bytes]:
    """SHA-256 of every chunk of the first `num_bytes` of a file."""
    with path.open("rb") as file:
        return [hashlib.sha256(file.read(CHUNK_BYTES)).digest() for _ in range(num_chunks(num_bytes))]


def _chunk(question: TransferChunkAsk, path: Path) -> Message:
    num_bytes = path.stat().st_size
    if not 0 <= question.index < num_chunks(num_bytes):
        return Refusal(reason=f"the file {question.name!r} has no chunk {question.index}")
    first, end = chunk_range(num_bytes, question.index)
    with path.open("rb") as file:
        file.seek(first)
        data = file.read(end - first)
    return TransferChunk(name=question.name, index=question.index, data=memoryview(data))
