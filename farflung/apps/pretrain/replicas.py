"""What a run of rounds is resumed from: replicas as checkpoints, and the coordinator's decisions round by round."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from farflung.learn.checkpoint import checkpoints, load_checkpoint, require_fit, save_checkpoint
from farflung.runtime.store import FileStore
from farflung.systems.desync.forming import Decided
from farflung.systems.desync.register import STORE_KEY
from farflung.systems.desync.replica import Replica
from farflung.systems.desync.snapshots import ReplicaState
from farflung.world.doors import Store

RESIDUAL = "residual"
TENSORS = "tensors"
STATE, ROUND = "replica", "round"
ROUNDS_KEPT = 1000
"""A worker's newest checkpoint is hardly older than so many rounds."""


class ReplicaFolder:
    """The checkpoints of one worker's replica, each as of the end of a round."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "checkpoints"

    @property
    def newest_round(self) -> int:
        """Round of the newest checkpoint; 0: there is none."""
        if not checkpoints(self._folder):
            return 0
        found = load_checkpoint(self._folder).state[ROUND]
        assert isinstance(found, int)
        return found

    def save(self, replica: Replica) -> None:
        """Runs on the compute door, between two computations."""
        state = replica.with_moments(None)
        own = {one.name: getattr(state, one.name) for one in fields(state) if one.name != TENSORS}
        values = {STATE: msgspec.to_builtins(own), ROUND: state.round}
        save_checkpoint(self._folder, {**state.tensors, RESIDUAL: replica.residual}, values)

    def load(self, replica: Replica) -> None:
        """Become what was saved; nothing happens if nothing was.

        Raises:
            ValueError: what lies there is damaged or of another model.
        """
        if not checkpoints(self._folder):
            return
        found = load_checkpoint(self._folder)
        residual = found.tensors.pop(RESIDUAL)
        require_fit(found.tensors, replica.tensors(), str(found.path))
        own = msgspec.convert(found.state[STATE], type=dict[str, Any])
        fields_of: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in own.items()
        }
        replica.load(ReplicaState(tensors=found.tensors, **fields_of))
        if residual.shape == replica.residual.shape:
            replica.residual.copy_(residual)


class KeptRounds:
    """The coordinator's store, which keeps beside the newest decision those that led to it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, key: str) -> bytes | None:
        return self._store.read(key)

    def write(self, key: str, value: bytes) -> None:
        if key == STORE_KEY:
            number = msgspec.json.decode(value, type=Decided).round
            self._store.write(_round_key(number), value)
            self._store.delete(_round_key(number - ROUNDS_KEPT))
        self._store.write(key, value)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def keys(self, prefix: str = "") -> list[str]:
        return self._store.keys(prefix)


def roll_back(home: Path, number: int) -> None:
    """Let a coordinator that nobody hears any more go on from the end of a round, because no later one was saved.

    Raises:
        ValueError: it does not know that round.
    """
    store = FileStore(home / "store")
    newest = store.read(STORE_KEY)
    if newest is None:
        return
    decided = msgspec.json.decode(newest, type=Decided)
    if decided.round == number:
        return
    if number == 0:
        store.delete(STORE_KEY)
        return
    kept = store.read(_round_key(number))
    if kept is None:
        raise ValueError(f"this run cannot be resumed: its workers stand at round {number}, its coordinator at another")
    then = msgspec.json.decode(kept, type=Decided)
    # Numbers of exchanges are never used twice.
    store.write(STORE_KEY, msgspec.json.encode(msgspec.structs.replace(then, num_exchanges=decided.num_exchanges)))


def _round_key(number: int) -> str:
    return f"{STORE_KEY}-round-{number}"
