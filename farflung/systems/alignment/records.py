"""What the hub writes to its journal before anybody is told, and the state in which everything up to a record stands.

align/manifest              the newest checkpoint: learner and ledger, and how many records it holds
align/state/DIGEST          chunks of the learner's tensors
align/chain                 manifests of the published versions
align/chunk/DIGEST          chunks of published weights
journal "align"             what came after the checkpoint; its records are numbered, so that one that a crash left in
                            it although the checkpoint holds it is passed over
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from farflung.learn.checkpoint import Json
from farflung.learn.parameters import Tensors
from farflung.systems.alignment.chain import Published
from farflung.systems.alignment.config import WeightsConfig
from farflung.systems.alignment.deltas import NOTHING, Packed, pack_version, unpack_version, version_of
from farflung.systems.alignment.ledger import Answer, Ledger, LedgerState
from farflung.systems.alignment.messages import Manifest
from farflung.systems.alignment.rollouts import Group
from farflung.world.doors import Store, World

JOURNAL = "align"
MANIFEST = "align/manifest"
CHAIN = "align/chain"
STATE_PREFIX = "align/state/"
STATE_CONFIG = WeightsConfig(chunk_bytes=16 << 20, values_per_piece=1 << 22)


class Arrived(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Answers that were taken."""

    answers: tuple[Answer, ...]


class Trained(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A group of a step."""

    prompt: int
    members: tuple[int, ...]
    rewards: tuple[float, ...]


class Stepped(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """An optimizer step was made, and this is its batch."""

    version: int
    groups: tuple[Trained, ...]


class GaveUp(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A prompt is closed that was not trained on."""

    prompt: int
    reason: str


class Banned(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """What a worker sends is not taken any more."""

    worker: str
    reason: str


Record = Arrived | Stepped | GaveUp | Banned


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record in the journal."""

    number: int
    """From 1 on."""
    record: Record


class Saved(msgspec.Struct, forbid_unknown_fields=True):
    """A checkpoint without its tensors."""

    num_records: int
    """The newest record that it holds."""
    ledger: LedgerState
    learner: Manifest
    learner_state: bytes
    """JSON."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a trainer finds on its disk."""

    saved: Saved | None
    records: tuple[Record, ...]
    """After it, in order."""
    num_records: int
    """Number of the newest one."""
    published: Published

    @classmethod
    def read(cls, world: World) -> "Kept":
        """Look on the disk of this node.

        Raises:
            ValueError: what lies there was not written by this program.
        """
        data, chain = world.store.read(MANIFEST), world.store.read(CHAIN)
        try:
            saved = None if data is None else msgspec.msgpack.decode(data, type=Saved)
            published = Published() if chain is None else msgspec.msgpack.decode(chain, type=Published)
            entries = [msgspec.msgpack.decode(record, type=Entry) for record in world.journal(JOURNAL).records()]
        except msgspec.MsgspecError as error:
            raise ValueError(
                f"the saved state of this trainer is damaged ({error}): restore it, or start in an empty home"
            ) from None
        first = saved.num_records if saved is not None else 0
        new = [entry for entry in entries if entry.number > first]
        return cls(saved, tuple(entry.record for entry in new), new[-1].number if new else first, published)

    def learner(self, store: Store) -> tuple[Tensors, dict[str, Json]] | None:
        """The learner's tensors and state; None: there is no checkpoint yet.

        Raises:
            ValueError: a part of it is missing or damaged.
        """
        if self.saved is None:
            return None
        tensors = unpack_version(self.saved.learner, NOTHING, lambda digest: _read(store, digest)).tensors
        return tensors, msgspec.json.decode(self.saved.learner_state)


def _read(store: Store, digest: bytes) -> bytes:
    data = store.read(f"{STATE_PREFIX}{digest.hex()}")
    if data is None:
        raise ValueError(f"part {digest.hex()[:12]} of the trainer's checkpoint is missing: restore it, or start anew")
    return data


def pack_learner(tensors: Tensors, state: Mapping[str, Json]) -> tuple[Packed, bytes]:
    """A learner's state for the disk: quickly, so as it is. Run it on the compute door."""
    return pack_version(version_of(0, tensors), NOTHING, STATE_CONFIG, None, is_small=False), msgspec.json.encode(state)


def save(world: World, saved: Saved, chunks: Mapping[bytes, bytes]) -> None:
    """Write a checkpoint: it counts as a whole once the manifest is there. Then forget what it makes superfluous."""
    for digest, data in chunks.items():
        key = f"{STATE_PREFIX}{digest.hex()}"
        if world.store.read(key) != data:
            world.store.write(key, data)
    world.store.write(MANIFEST, msgspec.msgpack.encode(saved))
    needed = {f"{STATE_PREFIX}{digest.hex()}" for digest in chunks}
    for key in world.store.keys(STATE_PREFIX):
        if key not in needed:
            world.store.delete(key)
    journal = world.journal(JOURNAL)
    journal.drop(sum(1 for _ in journal.records()))


def replay(ledger: Ledger, record: Record) -> None:
    """Do to the ledger what was done when the record was written."""
    match record:
        case Arrived(answers):
            for answer in answers:
                if not ledger.is_closed(answer.rollout.prompt):
                    ledger.keep(answer)
        case Stepped(version, groups):
            ledger.stepped([group.prompt for group in groups], version)
        case GaveUp(prompt, _):
            ledger.give_up(prompt)
        case Banned(worker, reason):
            ledger.state.banned[worker] = reason
            ledger.drop_of(worker)


def groups_of(ledger: Ledger, record: Stepped) -> list[Group]:
    """The batch of a step whose groups are still open in the ledger, as it was trained on."""
    return [
        Group(
            trained.prompt,
            tuple(ledger.answers[trained.prompt][member].rollout for member in trained.members),
            trained.rewards,
        )
        for trained in record.groups
    ]
