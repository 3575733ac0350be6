"""What the trainer has published: an anchor and the deltas since, and the cheapest way from what a node holds.

    version      0        1        2        3        4        5
    deltas            ───────> ───────> ───────> ───────> ───────>
    anchors      █                          █                            a new one once the deltas since weigh as much

So a newcomer never fetches more than twice the model, and who keeps up never fetches an anchor.
"""

import msgspec

from farflung.systems.alignment.config import WeightsConfig
from farflung.systems.alignment.deltas import NOTHING, Packed, Version, pack_version
from farflung.systems.alignment.messages import Canary, Manifest


class Published(msgspec.Struct, forbid_unknown_fields=True):
    """The chain as it lies on the disk, beside the chunks."""

    anchor: Manifest | None = None
    deltas: list[Manifest] = []
    """Oldest first; each begins where the one before it ends."""


class Chain:
    """Manifests that somebody may still need."""

    def __init__(self, config: WeightsConfig, published: Published) -> None:
        self._config = config
        self.published = published

    @property
    def newest(self) -> int:
        """Number of the newest version; -1: none is published."""
        return max((manifest.version for manifest in self._manifests()), default=-1)

    def pack(self, new: Version, base: Version, canary: Canary | None) -> list[Packed]:
        """A delta, an anchor, or both. Takes long: run it on the compute door."""
        if self.published.anchor is None:
            return [pack_version(new, NOTHING, self._config, canary)]
        delta = pack_version(new, base, self._config, canary)
        since = [manifest for manifest in self.published.deltas if manifest.version > self.published.anchor.version]
        num_bytes = sum(manifest.num_bytes for manifest in since) + delta.manifest.num_bytes
        if num_bytes < self.published.anchor.num_bytes and len(since) + 1 < self._config.versions_kept:
            return [delta]
        return [delta, pack_version(new, NOTHING, self._config, canary)]

    def add(self, packed: list[Packed]) -> list[bytes]:
        """Take what `pack` made; the chunks that nobody needs any more."""
        before = {chunk.digest for manifest in self._manifests() for chunk in manifest.chunks}
        for one in packed:
            if one.manifest.is_anchor:
                self.published.anchor = one.manifest
            else:
                self.published.deltas = [*self.published.deltas, one.manifest][-self._config.versions_kept :]
        after = {chunk.digest for manifest in self._manifests() for chunk in manifest.chunks}
        return sorted(before - after)

    def path(self, version: int, weights_hash: bytes) -> tuple[Manifest, ...]:
        """The manifests of the fewest bytes that lead from these weights to the newest; none: they are the newest."""
        anchor, deltas = self.published.anchor, self.published.deltas
        if anchor is None or version == self.newest:
            return ()
        afresh = (anchor, *(manifest for manifest in deltas if manifest.version > anchor.version))
        for place, manifest in enumerate(deltas):
            if (manifest.base_version, manifest.base_hash) == (version, weights_hash):
                return min(tuple(deltas[place:]), afresh, key=_num_bytes)
        return afresh

    def hash_of(self, version: int) -> bytes | None:
        """Of a published version; None: there is no such version, or it is too old to matter."""
        return next((one.weights_hash for one in self._manifests() if one.version == version), None)

    def _manifests(self) -> list[Manifest]:
        anchor = self.published.anchor
        return [*([anchor] if anchor is not None else []), *self.published.deltas]


def _num_bytes(manifests: tuple[Manifest, ...]) -> int:
    return sum(manifest.num_bytes for manifest in manifests)
