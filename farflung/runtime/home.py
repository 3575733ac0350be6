"""A node's home: the folder with its key, its swarms' authorities, journals and caches, for one process at a time.

identity.key        Ed25519, 32 bytes, readable by its owner alone
authorities/NAME    of swarms founded here
store/              small values by key
journals/NAME.db    append-only logs
lock                held while a node lives here
"""

import hashlib
import os
from pathlib import Path

import platformdirs

from farflung.runtime.journal import SqliteJournal
from farflung.runtime.store import FileStore, file_name, write_durably
from farflung.wire.identity import KEY_BYTES, Identity
from farflung.wire.ticket import SwarmAuthority

VARIABLE = "FARFLUNG_HOME"


def default_home() -> Path:
    """The folder that FARFLUNG_HOME names, else the user's data folder."""
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else platformdirs.user_data_path("farflung")


class Home:
    """An open home; `close` it, or leave its `with` block, to let another node in."""

    def __init__(self, folder: Path | None = None) -> None:
        """Make the folder if need be, and lock it.

        Raises:
            ValueError: another node lives there, or the folder cannot be used.
        """
        self.folder = (folder or default_home()).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = open(self.folder / "lock", "a+b")  # noqa: SIM115 (held as long as the home is)
        except OSError as error:
            raise ValueError(f"{self.folder} cannot be a home: {error.strerror}; set {VARIABLE} to another") from None
        if not _lock(self._lock.fileno()):
            self._lock.close()
            raise ValueError(f"another node lives in {self.folder}; set {VARIABLE} to a folder of its own for this one")
        self.store = FileStore(self.folder / "store")
        self._journals: dict[str, SqliteJournal] = {}

    def __enter__(self) -> "Home":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def identity(self) -> Identity:
        """The node's key, made at the first call."""
        path = self.folder / "identity.key"
        if not path.exists():
            write_durably(path, Identity.generate().private_key)
        private_key = path.read_bytes()
        if len(private_key) != KEY_BYTES:
            raise ValueError(f"{path} is damaged; restore it, or remove it to begin anew with another peer id")
        return Identity(private_key)

    def authority(self, swarm: str, now: float) -> SwarmAuthority:
        """The authority of the swarm called `swarm`, founded at the first call; `now`: wall-clock seconds."""
        folder = self.folder / "authorities"
        folder.mkdir(exist_ok=True, mode=0o700)
        path = folder / hashlib.sha256(swarm.encode()).hexdigest()[:32]
        if not path.exists():
            write_durably(path, SwarmAuthority.found(swarm, now).to_bytes())
        return SwarmAuthority.from_bytes(path.read_bytes())

    def journal(self, name: str) -> SqliteJournal:
        """The journal called `name`; one object per name."""
        if name not in self._journals:
            self._journals[name] = SqliteJournal(self.folder / "journals" / f"{file_name(name)}.db")
        return self._journals[name]

    def close(self) -> None:
        """Close the journals and let another node in."""
        for journal in self._journals.values():
            journal.close()
        self._journals.clear()
        self._lock.close()


def _lock(handle: int) -> bool:
    """Take the lock of an open file; the operating system gives it back when the process ends, however it ends."""
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
