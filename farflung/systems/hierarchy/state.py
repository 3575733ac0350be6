"""A server's state over crashes: what it holds, how it is saved, and how a restart rebuilds it.

Whatever the journal says is applied again after a restart through the very code that applied it first; a saved state
only shortens that. Invariant: the saved state and the records after it give the model to the last bit.
"""

from collections import deque
from collections.abc import Callable

import msgspec

from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.durable import (
    MANIFEST,
    PREFIX,
    Counters,
    Kept,
    Manifest,
    model_key,
    push_key,
    state_key,
    update_key,
)
from farflung.systems.hierarchy.ledger import Ledger
from farflung.systems.hierarchy.merge import ServedModel
from farflung.systems.hierarchy.messages import RunIdentity
from farflung.systems.hierarchy.records import JOURNAL, Committed, Leased, Merged, Record, encode_record
from farflung.systems.hierarchy.work import Compute, Read, Work, WorkQueue
from farflung.world.effects import Append, Delete, Drop, Effect, Note, Save


class ServerState:
    """Ledger, counters and model of one server, and the queue of work on them."""

    def __init__(self, config: HierarchyConfig, run: RunIdentity, model: ServedModel, kept: Kept) -> None:
        """Take up what `kept` says; `restore` then rebuilds the model.

        Raises:
            ValueError: it is of another model.
        """
        self._config = config
        self._run = run
        self.model = model
        self.queue = WorkQueue("work")
        self.ledger = Ledger()
        self.counters = Counters()
        self.lease = 0
        """Held with the server above; 0: none."""
        self._kept = kept
        self._saved = 0
        self._saved_version = 0
        self._replay_bytes = 0
        """Of what was applied since."""
        self._journal = deque(record.number for record in kept.records)
        self._covered: list[str] = []
        """Keys whose values the next saved state makes superfluous."""
        if kept.manifest is not None:
            self._take_manifest(kept.manifest)
        for record in kept.records:
            self.ledger.take(record)
            if isinstance(record, Leased):
                self.lease = max(self.lease, record.lease)

    def _take_manifest(self, manifest: Manifest) -> None:
        if manifest.layout != self._run.layout:
            raise ValueError("the saved state of this server is of another model: start it in an empty home")
        self.ledger, self.counters, self.lease = manifest.ledger, manifest.counters, manifest.lease
        self._saved, self._saved_version = manifest.number, manifest.counters.version

    @property
    def global_steps(self) -> int:
        """Worker steps of the whole run, as far as this server knows."""
        return self.counters.above_steps + self.ledger.num_steps - self.counters.merged_steps

    @property
    def speed_max(self) -> float:
        """Steps per second of the fastest worker known of; 0: none is."""
        return self._config.speed_max or max(self.ledger.speed_max(), self.counters.above_speed_max)

    # Writing down

    def record(self, record: Record) -> list[Effect]:
        """Make `record` durable and true."""
        self._journal.append(record.number)
        self.ledger.take(record)
        return [Append(JOURNAL, encode_record(record))]

    def applied(self, record: Committed | Merged, num_bytes: int) -> None:
        """The model has all of `record`, whose parts are so many bytes."""
        self.counters.applied = record.number
        self._replay_bytes += num_bytes
        self.cover(keys_of(record))

    def cover(self, keys: list[str]) -> None:
        """The next saved state makes these values superfluous."""
        self._covered += keys

    def save_if_due(self) -> Work:
        """Save the state if enough has been applied since the last time."""
        is_due = self.counters.version - self._saved_version >= self._config.updates_per_snapshot
        if not is_due and self._replay_bytes <= self._config.replay_bytes_max:
            return
        number = self._saved + 1
        for index in range(self.model.num_parts):
            data = yield Compute(self.model.save_part, (index,))
            yield Save(state_key(number, index), data)
        self.counters.rule_step = self.model.state.step
        manifest = Manifest(number, self._run.layout, self.ledger, self.counters, self.lease)
        yield Save(MANIFEST, msgspec.msgpack.encode(manifest))
        old = [state_key(self._saved, index) for index in range(self.model.num_parts)] if self._saved else []
        for key in [*self._covered, *old]:
            yield Delete(key)
        self._covered.clear()
        self._saved, self._saved_version, self._replay_bytes = number, self.counters.version, 0
        num_dropped = sum(1 for each in self._journal if each <= self.counters.applied)
        for _ in range(num_dropped):
            self._journal.popleft()
        yield Drop(JOURNAL, num_dropped)

    # Restoring

    def restore(self, replay: Callable[[Committed | Merged], Work]) -> list[Effect]:
        """Rebuild the model: the saved state, then `replay` of every record after it."""
        kept, self._kept = self._kept, Kept(None, (), self._kept.keys)
        effects: list[Effect] = [Delete(key) for key in kept.keys if not self._is_needed(key, kept)]
        if kept.manifest is not None:
            effects += self.queue.push(self._restore_saved())
        pending = [each for each in kept.records if each.number > self.counters.applied]
        if kept.manifest is not None or kept.records:
            version = self.counters.version
            effects.append(Note(f"restarts from version {version} and replays {len(pending)} records after it"))
        for record in pending:
            if isinstance(record, Committed | Merged):
                effects += self.queue.push(replay(record))
        return effects

    def _restore_saved(self) -> Work:
        for index in range(self.model.num_parts):
            data = yield Read(state_key(self._saved, index))
            assert data is not None, "a part of the saved state is missing"
            yield Compute(self.model.restore_part, (index, data))
        self.model.state.step = self.counters.rule_step

    def _is_needed(self, key: str, kept: Kept) -> bool:
        match key.removeprefix(PREFIX).split("/"):
            case ["manifest"]:
                return True
            case ["state", number, _]:
                return int(number) == self._saved
            case ["update", name, lease, sequence, _]:
                client = self.ledger.clients.get(name)
                is_arriving = client is not None and int(lease) == client.lease and int(sequence) > client.sequence
                return is_arriving or key in self._pending_keys(kept)
            case ["above" | "snapshot", number, _]:
                return int(number) == self.counters.merged_push
            case ["owed", number, _]:
                return int(number) == self.counters.num_pushes
            case ["push", number, _]:
                return int(number) > self.counters.merged_push
            case _:
                return key in self._pending_keys(kept)

    def _pending_keys(self, kept: Kept) -> dict[str, None]:
        records = [each for each in kept.records if each.number > self.counters.applied]
        return {key: None for each in records if isinstance(each, Committed | Merged) for key in keys_of(each)}

    def unfinished(self, name: str) -> list[str]:
        """Keys of parts that an earlier life got of updates that this client has not completed under its lease."""
        client = self.ledger.clients[name]
        folder = f"{PREFIX}update/{name}/{client.lease}/"
        keys = [key for key in self._kept.keys if key.startswith(folder)]
        return [key for key in keys if int(key.removeprefix(folder).split("/")[0]) > client.sequence]

    def found_parts(self, name: str, lease: int, sequence: int) -> list[int]:
        """Parts of an update that an earlier life got."""
        folder = update_key(name, lease, sequence, 0)[:-1]
        return [int(key[len(folder) :]) for key in self._kept.keys if key.startswith(folder)]


def keys_of(record: Committed | Merged) -> list[str]:
    """Where the tensors of a record lie."""
    if isinstance(record, Committed):
        parts = range(record.header.num_parts)
        return [update_key(record.name, record.lease, record.sequence, index) for index in parts]
    return [model_key(record.push, index) for index in range(record.num_parts)]


def push_keys(number: int, num_parts: int) -> list[str]:
    """Where a push lies."""
    return [push_key(number, index) for index in range(num_parts)]
