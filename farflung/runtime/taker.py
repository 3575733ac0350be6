"""The taking end of file transfers: what is missing is asked for, verified and written, until the file is whole.

Invariant: a chunk counts as here only if its hash is the manifest's. So a taker that begins again, after whatever end
of the last one, hashes what lies on disk and asks for the rest; no list is kept that could be wrong.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from farflung.runtime.store import sync_folder
from farflung.wire.message import NoSuchActor, Refusal
from farflung.wire.transfer import (
    TransferAsk,
    TransferChunk,
    TransferChunkAsk,
    TransferManifest,
    chunk_range,
    num_chunks,
)
from farflung.world.address import Address
from farflung.world.doors import World
from farflung.world.errors import PeerMisbehaved, Refused, Unreachable
from farflung.world.mailbox import Mailbox, PeerLost

NUM_ASKED_MAX = 4
"""Chunks under way at one time: enough to keep all bulk lanes busy."""
PAUSE_SECONDS = 0.5
"""Between losing the giver and asking it again."""


async def take(
    world: World,
    source: Address,
    name: str,
    target: Path,
    *,
    patience_seconds: float = 120.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Get the file that `source` (a `Giver`) calls `name`, as `target`; what an earlier attempt got is kept.

    `progress(done, total)` is told bytes. `target` appears when it is whole, and is on disk when this returns.

    Raises:
        Unreachable: no chunk came for `patience_seconds`; try again later.
        Refused: the giver says no.
        PeerMisbehaved: it sends what does not fit its own manifest.
    """
    with Mailbox(world, f"take-{hashlib.sha256(str(target).encode()).hexdigest()[:16]}") as mailbox:
        taker = _Taker(world, mailbox, source, name, target, patience_seconds, progress)
        await taker.run()


class _Taker:
    def __init__(
        self,
        world: World,
        mailbox: Mailbox,
        source: Address,
        name: str,
        target: Path,
        patience_seconds: float,
        progress: Callable[[int, int], None],
    ) -> None:
        self._world = world
        self._mailbox = mailbox
        self._source = source
        self._name = name
        self._target = target
        self._partial = target.with_name(f".{target.name}.partial")
        self._patience_seconds = patience_seconds
        self._progress = progress
        self._last_news = world.clock.now()
        self._missing: list[int] = []
        self._asked: list[int] = []

    async def run(self) -> None:
        manifest = await self._manifest()
        self._missing = await asyncio.to_thread(_missing_chunks, self._partial, manifest)
        self._report(manifest)
        with self._partial.open("r+b", buffering=0) as file:
            while self._missing:
                self._ask_more()
                chunk = await self._next()
                if chunk is None:
                    self._asked.clear()
                elif chunk.index in self._missing:
                    await asyncio.to_thread(_write, file, manifest, chunk, self._source)
                    self._missing.remove(chunk.index)
                    self._asked = [index for index in self._asked if index != chunk.index]
                    self._report(manifest)
            await asyncio.to_thread(os.fsync, file.fileno())
        self._partial.replace(self._target)
        sync_folder(self._target.parent)

    async def _manifest(self) -> TransferManifest:
        while True:
            self._mailbox.send(self._source, TransferAsk(name=self._name))
            answer = await self._receive()
            if answer is None:
                continue
            if not isinstance(answer, TransferManifest) or not answer.is_sound():
                raise PeerMisbehaved(self._source.peer, "its answer is no manifest")
            return answer

    def _ask_more(self) -> None:
        for index in self._missing:
            if len(self._asked) >= NUM_ASKED_MAX:
                return
            if index not in self._asked:
                self._asked.append(index)
                self._mailbox.send(self._source, TransferChunkAsk(name=self._name, index=index))

    async def _next(self) -> TransferChunk | None:
        """The next chunk; None when the giver was lost, and all must be asked for again."""
        answer = await self._receive()
        if answer is not None and not isinstance(answer, TransferChunk | TransferManifest):
            raise PeerMisbehaved(self._source.peer, f"it answers with {type(answer).__name__}")
        return answer if isinstance(answer, TransferChunk) else None

    async def _receive(self) -> object:
        """What the giver sends next; None, after a pause, when it was lost or is too busy.

        Raises:
            Unreachable, Refused: there was no news for too long; it says no.
        """
        while (received := await self._mailbox.receive(self._last_news + self._patience_seconds)) is not None:
            if received[0].peer != self._source.peer:
                continue
            match received[1]:
                case PeerLost() | NoSuchActor():
                    pass
                case Refusal(reason=reason, retry_after_seconds=0.0):
                    raise Refused(self._source.peer, reason)
                case Refusal():
                    pass
                case answer:
                    self._last_news = self._world.clock.now()
                    return answer
            await asyncio.sleep(PAUSE_SECONDS)
            if self._world.clock.now() < self._last_news + self._patience_seconds:
                return None
        raise Unreachable(self._source.peer, f"no part of {self._name} came for {self._patience_seconds:g} seconds")

    def _report(self, manifest: TransferManifest) -> None:
        ranges = (chunk_range(manifest.num_bytes, index) for index in self._missing)
        self._progress(manifest.num_bytes - sum(end - first for first, end in ranges), manifest.num_bytes)


def _missing_chunks(partial: Path, manifest: TransferManifest) -> list[int]:
    """Make the partial file if need be, and say what it lacks."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.touch()
    os.truncate(partial, manifest.num_bytes)
    missing: list[int] = []
    with partial.open("rb") as file:
        for index in range(num_chunks(manifest.num_bytes)):
            first, end = chunk_range(manifest.num_bytes, index)
            if hashlib.sha256(file.read(end - first)).digest() != manifest.hashes[index]:
                missing.append(index)
    return missing


def _write(file: FileIO, manifest: TransferManifest, chunk: TransferChunk, source: Address) -> None:
    first, end = chunk_range(manifest.num_bytes, chunk.index)
    if len(chunk.data) != end - first or hashlib.sha256(chunk.data).digest() != manifest.hashes[chunk.index]:
        reason = (
            f"chunk {chunk.index} of {manifest.name} is not what its manifest says; was the file changed meanwhile?"
        )
        raise PeerMisbehaved(source.peer, reason)
    file.seek(first)
    written = 0
    while written < len(chunk.data):
        written += file.write(chunk.data[written:])
