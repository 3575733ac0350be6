"""Which chunk is asked from whom: a pure account of one fetch of a new version.

Chunks that are here already, from an earlier life or another version, are not asked for. Every source that has the
version takes part; one that is silent, lacks a chunk or sends a damaged one is not asked again. Only the hub is, as the
last resort. So receivers relieve the hub of its own line.
"""

import hashlib
from collections.abc import Callable, Sequence

from farflung.systems.alignment.config import WeightsConfig
from farflung.systems.alignment.messages import ChunkRef, Manifest
from farflung.world.address import PeerId


class Fetching:
    """One fetch, from the path that the hub told to the last chunk."""

    def __init__(
        self,
        manifests: Sequence[Manifest],
        hub: PeerId,
        holders: Sequence[PeerId],
        has: Callable[[bytes], bool],
        config: WeightsConfig,
        now: float,
        name: str,
    ) -> None:
        """`has`: whether a chunk lies here. `name`: of the receiver; each gets the chunks in an order of its own."""
        self.manifests = tuple(manifests)
        self._config = config
        self._hub = hub
        self._sources = [*holders, hub]
        self._news_at = now
        self._heard_at: dict[PeerId, float] = {}
        """When a source last gave anything: over a thin link chunks wait for each other, which is no silence."""
        needed = dict.fromkeys(chunk for manifest in manifests for chunk in manifest.chunks)
        missing = [chunk for chunk in needed if not has(chunk.digest)]
        self._missing: list[ChunkRef] = sorted(missing, key=lambda chunk: _place(name, chunk))
        self._is_outdated = False
        self._asked: dict[bytes, tuple[PeerId, float]] = {}
        self.num_bytes_fetched = 0
        self.num_bytes_from_peers = 0

    @property
    def version(self) -> int:
        """That this leads to."""
        return self.manifests[-1].version

    @property
    def is_done(self) -> bool:
        return not self._missing

    def asks(self, now: float) -> list[tuple[PeerId, bytes]]:
        """(source, digest) to ask for now: for what nobody was asked for, and what was asked for too long ago."""
        for digest, (peer, asked_at) in list(self._asked.items()):
            if now >= self._deadline(peer, asked_at):
                self.fails(peer, digest)
        found: list[tuple[PeerId, bytes]] = []
        for chunk in self._missing:
            if len(self._asked) >= self._config.chunks_at_once:
                break
            if chunk.digest not in self._asked:
                source = self._least_busy()
                self._asked[chunk.digest] = source, now
                found.append((source, chunk.digest))
        return found

    def next_deadline(self) -> float:
        """When an ask will have waited too long."""
        return min((self._deadline(peer, at) for peer, at in self._asked.values()), default=float("inf"))

    def _deadline(self, peer: PeerId, asked_at: float) -> float:
        return max(asked_at, self._heard_at.get(peer, asked_at)) + self._config.chunk_seconds_max

    def why_given_up(self, now: float) -> str | None:
        """Why this fetch is over without success; None: it goes on."""
        seconds = now - self._news_at
        if self._is_outdated:
            return f"the hub has dropped chunks of version {self.version}"
        if self.is_done or seconds < self._config.fetch_seconds_max:
            return None
        return f"nothing of version {self.version} has come for {seconds:.0f} s, and {len(self._missing)} chunks lack"

    def take(self, peer: PeerId, digest: bytes, data: bytes | memoryview, now: float) -> bool:
        """An answer; whether this chunk is to be kept. What is damaged or was not asked for is not."""
        chunk = next((one for one in self._missing if one.digest == digest), None)
        if chunk is None:
            return False
        if peer == self._hub and not len(data):
            self._is_outdated = True
        if len(data) != chunk.num_bytes or hashlib.sha256(data).digest() != digest:
            if digest in self._asked and self._asked[digest][0] == peer:
                self.fails(peer, digest)
            return False
        self._news_at = self._heard_at[peer] = now
        self._missing.remove(chunk)
        self._asked.pop(digest, None)
        self.num_bytes_fetched += chunk.num_bytes
        self.num_bytes_from_peers += chunk.num_bytes if peer != self._hub else 0
        return True

    def fails(self, peer: PeerId, digest: bytes) -> None:
        """A source did not give what it was asked for."""
        self._asked.pop(digest, None)
        self._drop(peer)

    def lost(self, peer: PeerId) -> None:
        """The way to a source broke: what it was asked for is asked from others; the hub is asked again later."""
        if peer == self._hub:
            return
        self._drop(peer)
        self._asked = {digest: ask for digest, ask in self._asked.items() if ask[0] != peer}

    def _drop(self, peer: PeerId) -> None:
        self._sources = [source for source in self._sources if source != peer or source == self._hub]

    def _least_busy(self) -> PeerId:
        busy = [peer for peer, _ in self._asked.values()]
        return min(self._sources, key=busy.count)


def _place(name: str, chunk: ChunkRef) -> bytes:
    return hashlib.sha256(name.encode() + chunk.digest).digest()
