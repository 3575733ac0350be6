"""The store door on real machines: one file per key, replaced as a whole or not at all."""

import errno
import os
import urllib.parse
from pathlib import Path

FILE_NAME_LENGTH_MAX = 200
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors after which there is nothing to be done but to make room."""


class FileStore:
    """Implements `world.doors.Store` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def read(self, key: str) -> bytes | None:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, key: str, value: bytes) -> None:
        write_durably(self._path(key), value)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)
        sync_folder(self._folder)

    def keys(self, prefix: str = "") -> list[str]:
        names = (urllib.parse.unquote(path.name) for path in self._folder.iterdir() if not path.name.startswith("."))
        return sorted(name for name in names if name.startswith(prefix))

    def _path(self, key: str) -> Path:
        return self._folder / file_name(key)


def file_name(key: str) -> str:
    """A name for `key` in any file system; it never begins with a point, as that of a file being written does."""
    name = urllib.parse.quote(key, safe="").replace(".", "%2E")
    assert 0 < len(name) <= FILE_NAME_LENGTH_MAX, f"a key of {len(key)} characters cannot name a file"
    return name


def write_durably(path: Path, value: bytes, mode: int = 0o600) -> None:
    """Replace a file so that a crash leaves the old content or the new, and the new once this has returned."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder survive a crash."""
    if os.name == "nt":
        return  # Windows has no handle of a folder to sync; its rename is journalled.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
