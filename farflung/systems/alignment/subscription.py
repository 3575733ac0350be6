"""A worker's side of the weight plane: which version it holds, which one it is fetching, and what comes next.

news ─> path ─> chunks, from the hub and from other workers ─> renew (compute) ─> held
                   └─ too late, damaged, canary disagrees ─> the old version stays, the hub is told, an anchor next
"""

from collections.abc import Callable, Iterable

from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.deltas import NOTHING, Version
from farflung.systems.alignment.fetching import Fetching
from farflung.systems.alignment.installing import RENEWAL_ERRORS
from farflung.systems.alignment.messages import (
    HUB_ACTOR,
    SEEDER_ACTOR,
    WORKER_ACTOR,
    AlignChunk,
    AlignChunkAsk,
    AlignHolds,
    AlignPath,
    AlignPathAsk,
    Manifest,
)
from farflung.systems.alignment.seeder import PREFIX, chunk_key
from farflung.wire.tensor import MalformedTensor
from farflung.world.address import Address, PeerId
from farflung.world.doors import Failed, World

Send = Callable[[Address, object], None]


class Subscription:
    """Follows the versions of one hub."""

    def __init__(self, world: World, config: AlignmentConfig, hub: PeerId, name: str) -> None:
        self.held: Version = NOTHING
        self.newest = -1
        """That is known to be published."""
        self.num_versions = 0
        """Installed in this life."""
        self.num_bytes = 0
        """Fetched for them."""
        self.num_bytes_from_peers = 0
        self._world = world
        self._config = config
        self._hub = hub
        self._name = name
        self._fetching: Fetching | None = None
        self._ask = 0
        self._asked_at = float("-inf")
        self._retry_at = float("-inf")
        self._must_start_afresh = False
        """A delta did not lead where it should: an anchor is next."""

    @property
    def is_behind(self) -> bool:
        return self.newest > self.held.number

    @property
    def fetched(self) -> tuple[Manifest, ...] | None:
        """A path whose chunks are all here."""
        return self._fetching.manifests if self._fetching is not None and self._fetching.is_done else None

    def deadline(self) -> float:
        """When `act` has something to do, if nothing comes before."""
        if self._fetching is not None:
            return self._fetching.next_deadline()
        return max(self._asked_at + self._config.silence_seconds, self._retry_at) if self.is_behind else float("inf")

    def hub_started_anew(self) -> None:
        """What it was asked is forgotten."""
        self._asked_at = float("-inf")

    def act(self, send: Send, now: float) -> None:
        """Ask for what is missing."""
        if self._fetching is not None:
            reason = self._fetching.why_given_up(now)
            if reason is not None:
                self._keep_old(send, self._fetching.version, reason)
                return
            for peer, digest in self._fetching.asks(now):
                send(Address(peer, SEEDER_ACTOR), AlignChunkAsk(digest=digest))
        elif self.is_behind and now >= self.deadline():
            self._asked_at = now
            self._ask += 1
            number, weights_hash = self.held.number, self.held.weights_hash
            if self._must_start_afresh:
                number, weights_hash = -1, b""
            ask = AlignPathAsk(name=self._name, version=number, weights_hash=weights_hash, ask=self._ask)
            send(Address(self._hub, HUB_ACTOR), ask)

    def take_path(self, message: AlignPath) -> None:
        """The hub's answer; only to the last question, and only once."""
        if message.ask != self._ask or self._fetching is not None or not message.manifests:
            return
        self._ask += 1
        self._asked_at = float("-inf")
        self._fetching = Fetching(
            message.manifests,
            self._hub,
            [PeerId(holder) for holder in message.holders],
            lambda digest: self._world.store.read(chunk_key(digest)) is not None,
            self._config.weights,
            self._world.clock.now(),
            self._name,
        )
        self.newest = max(self.newest, self._fetching.version)

    def take_chunk(self, peer: PeerId, message: AlignChunk) -> None:
        """Keep it, if it is one that was missing; it is here for others too, and after a crash."""
        if self._fetching is not None and self._fetching.take(
            peer, message.digest, message.data, self._world.clock.now()
        ):
            self._world.store.write(chunk_key(message.digest), bytes(message.data))

    def lost(self, peer: PeerId) -> None:
        """The way to somebody broke, or nobody gives chunks there."""
        if self._fetching is not None:
            self._fetching.lost(peer)

    def renewed(self, send: Send, result: object) -> None:
        """What came of giving the policy what was fetched.

        Raises:
            Exception: the computation failed in a way that keeping the old version does not help.
        """
        fetching, self._fetching = self._fetching, None
        assert fetching is not None, "what is renewed was fetched"
        if isinstance(result, Failed):
            if not isinstance(result.error, RENEWAL_ERRORS):
                raise result.error
            self._forget_chunks(keep=())
            self._keep_old(send, fetching.version, str(result.error))
            return
        assert isinstance(result, Version)
        self.held = result
        self._must_start_afresh = False
        self.num_versions += 1
        self.num_bytes += fetching.num_bytes_fetched
        self.num_bytes_from_peers += fetching.num_bytes_from_peers
        if fetching.manifests[0].is_anchor:
            # From an anchor on these are all that anybody needs, also this node itself after a crash.
            self._forget_chunks(keep=(chunk.digest for one in fetching.manifests for chunk in one.chunks))
        self._tell(send, failed_version=-1, reason="")

    def read_chunk(self, digest: bytes) -> bytes:
        """From this disk.

        Raises:
            MalformedTensor: it is not there any more.
        """
        data = self._world.store.read(chunk_key(digest))
        if data is None:
            raise MalformedTensor(f"chunk {digest.hex()[:12]} has vanished from this disk")
        return data

    def _keep_old(self, send: Send, failed_version: int, reason: str) -> None:
        """This version cannot be had here now: sample on with the old one, and say so."""
        self._world.note(WORKER_ACTOR, f"keeps version {self.held.number}: {reason}")
        self._fetching = None
        self._must_start_afresh = True
        self._retry_at = self._world.clock.now() + self._config.silence_seconds
        self._tell(send, failed_version=failed_version, reason=reason)

    def _tell(self, send: Send, *, failed_version: int, reason: str) -> None:
        holds = AlignHolds(name=self._name, version=self.held.number, failed_version=failed_version, reason=reason)
        send(Address(self._hub, HUB_ACTOR), holds)

    def _forget_chunks(self, keep: Iterable[bytes]) -> None:
        kept = {chunk_key(digest) for digest in keep}
        for key in self._world.store.keys(PREFIX):
            if key not in kept:
                self._world.store.delete(key)
