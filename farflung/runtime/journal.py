"""The journal door on real machines: an append-only log in SQLite, whose synced records survive `kill -9`."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path


class SqliteJournal:
    """Implements `world.doors.Journal`. What was appended since the last `sync` is one open transaction."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY, record BLOB NOT NULL)")

    def append(self, record: bytes) -> None:
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")
        self._database.execute("INSERT INTO records (record) VALUES (?)", (record,))

    def sync(self) -> None:
        if self._database.in_transaction:
            self._database.execute("COMMIT")

    def records(self) -> Iterator[bytes]:
        for (record,) in self._database.execute("SELECT record FROM records ORDER BY number"):
            yield record

    def drop(self, num_records: int) -> None:
        assert not self._database.in_transaction, "sync before records are dropped"
        self._database.execute(
            "DELETE FROM records WHERE number IN (SELECT number FROM records ORDER BY number LIMIT ?)", (num_records,)
        )

    def close(self) -> None:
        """Give up what was not synced."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")
        self._database.close()
