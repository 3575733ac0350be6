"""What the trainer has published: an anchor and the deltas since, and the cheapest way from what a node holds.

    version      0        1        2        3        4        5
    deltas            ───────> ───────> ───────> ───────> ───────>
    anchors      █                          █                            a new one once the deltas since weigh as much

So a newcomer never fetches more than twice the model, and who keeps up never fetches an anchor. An older anchor stays
while answers may still come from versions that only it leads to: they are rebuilt when a trainer comes back.
"""

import msgspec

from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.deltas import NOTHING, Packed, Version, pack_version
from farflung.systems.alignment.messages import Canary, Manifest


class Published(msgspec.Struct, forbid_unknown_fields=True):
    """The chain as it lies on the disk, beside the chunks."""

    anchors: list[Manifest] = []
    deltas: list[Manifest] = []
    """Oldest first; each begins where the one before it ends."""


class Chain:
    """Manifests that somebody may still need."""

    def __init__(self, config: AlignmentConfig, published: Published) -> None:
        self._config = config.weights
        self._num_old = config.staleness_max + config.publish.steps_per_version
        """Versions back that answers may still come from."""
        self.published = published

    @property
    def newest(self) -> int:
        """Number of the newest version; -1: none is published."""
        return max((manifest.version for manifest in self._manifests()), default=-1)

    def pack(self, new: Version, base: Version, canary: Canary | None) -> list[Packed]:
        """A delta, an anchor, or both. Takes long: run it on the compute door."""
        if not self.published.anchors:
            return [pack_version(new, NOTHING, self._config, canary)]
        anchor = self.published.anchors[-1]
        delta = pack_version(new, base, self._config, canary)
        since = [manifest for manifest in self.published.deltas if manifest.version > anchor.version]
        num_bytes = sum(manifest.num_bytes for manifest in since) + delta.manifest.num_bytes
        if num_bytes < anchor.num_bytes and len(since) + 1 < self._config.versions_kept:
            return [delta]
        return [delta, pack_version(new, NOTHING, self._config, canary)]

    def add(self, packed: list[Packed]) -> list[bytes]:
        """Take what `pack` made; the chunks that nobody needs any more."""
        before = {chunk.digest for manifest in self._manifests() for chunk in manifest.chunks}
        for one in packed:
            (self.published.anchors if one.manifest.is_anchor else self.published.deltas).append(one.manifest)
        self._forget()
        after = {chunk.digest for manifest in self._manifests() for chunk in manifest.chunks}
        return sorted(before - after)

    def _forget(self) -> None:
        oldest = self.newest - self._num_old
        anchors, deltas = self.published.anchors, self.published.deltas
        while len(anchors) > 1 and anchors[1].version <= oldest:
            del anchors[0]
        while len(deltas) > self._config.versions_kept and deltas[0].version <= anchors[0].version:
            del deltas[0]

    def path(self, version: int, weights_hash: bytes) -> tuple[Manifest, ...]:
        """The manifests of the fewest bytes that lead from these weights to the newest; none: they are the newest."""
        anchors, deltas = self.published.anchors, self.published.deltas
        if not anchors or version == self.newest:
            return ()
        afresh = self._path_from(anchors[-1])
        for place, manifest in enumerate(deltas):
            if (manifest.base_version, manifest.base_hash) == (version, weights_hash):
                return min(tuple(deltas[place:]), afresh, key=_num_bytes)
        return afresh

    def whole_path(self) -> tuple[Manifest, ...]:
        """What leads to the newest version through all that answers may still come from; none if none is published."""
        return self._path_from(self.published.anchors[0]) if self.published.anchors else ()

    def _path_from(self, anchor: Manifest) -> tuple[Manifest, ...]:
        return (anchor, *(manifest for manifest in self.published.deltas if manifest.version > anchor.version))

    def hash_of(self, version: int) -> bytes | None:
        """Of a published version; None: there is no such version, or it is too old to matter."""
        return next((one.weights_hash for one in self._manifests() if one.version == version), None)

    def _manifests(self) -> list[Manifest]:
        return [*self.published.anchors, *self.published.deltas]


def _num_bytes(manifests: tuple[Manifest, ...]) -> int:
    return sum(manifest.num_bytes for manifest in manifests)
