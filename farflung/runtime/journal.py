"""The journal door on real machines: an append-only log in SQLite, whose synced records survive `kill -9`."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SqliteJournal:
    """Implements `world.doors.Journal`. What was appended since the last `sync` is one open transaction."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _disk_errors():
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY, record BLOB NOT NULL)"
            )

    def append(self, record: bytes) -> None:
        with _disk_errors():
            if not self._database.in_transaction:
                self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("INSERT INTO records (record) VALUES (?)", (record,))

    def sync(self) -> None:
        if self._database.in_transaction:
            with _disk_errors():
                self._database.execute("COMMIT")

    def records(self) -> Iterator[bytes]:
        for (record,) in self._database.execute("SELECT record FROM records ORDER BY number"):
            yield record

    def drop(self, num_records: int) -> None:
        assert not self._database.in_transaction, "sync before records are dropped"
        oldest = "SELECT number FROM records ORDER BY number LIMIT ?"
        with _disk_errors():
            self._database.execute(f"DELETE FROM records WHERE number IN ({oldest})", (num_records,))

    def close(self) -> None:
        """Give up what was not synced."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")
        self._database.close()


@contextmanager
def _disk_errors() -> Iterator[None]:
    """A full or failing disk is an OSError here as it is for files."""
    try:
        yield
    except sqlite3.OperationalError as error:
        number = errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
        raise OSError(number, f"the journal cannot be written: {error}") from error
