"""Disks that outlive crashes: what was written or synced stays, what was only appended is gone."""

from dataclasses import dataclass, field

from farflung.sim.process import Process


@dataclass(slots=True)
class Disk:
    """What a node keeps over its lives."""

    values: dict[str, bytes] = field(default_factory=dict[str, bytes])
    journals: dict[str, list[bytes]] = field(default_factory=dict[str, list[bytes]])


class DiskStore:
    """The store door of one process: each write is atomic and durable once it returns."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._process = process

    def read(self, key: str) -> bytes | None:
        return self._disk.values.get(key)

    def write(self, key: str, value: bytes) -> None:
        if self._process.is_alive:
            self._disk.values[key] = bytes(value)

    def delete(self, key: str) -> None:
        if self._process.is_alive:
            self._disk.values.pop(key, None)

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self._disk.values if key.startswith(prefix))


class DiskJournal:
    """One journal as one process sees it: the synced records, and its own that a crash would take."""

    def __init__(self, disk: Disk, process: Process, name: str) -> None:
        self._synced = disk.journals.setdefault(name, [])
        self._process = process
        self._unsynced: list[bytes] = []

    def append(self, record: bytes) -> None:
        self._unsynced.append(bytes(record))

    def sync(self) -> None:
        if self._process.is_alive:
            self._synced.extend(self._unsynced)
            self._unsynced.clear()

    def records(self) -> list[bytes]:
        return [*self._synced, *self._unsynced]

    def drop(self, num_records: int) -> None:
        assert not self._unsynced, "sync before records are dropped"
        if self._process.is_alive:
            del self._synced[:num_records]
