"""What the lead of a run tells its seats beyond the run file: the journal's header, and to candidates the run's key."""

from pathlib import Path

import msgspec

from farflung.runtime.store import write_durably
from farflung.wire.identity import KEY_BYTES, Identity

RUN_KEY_FILE = "run.key"
JOURNAL_FILE = "journal.flj"


class Charter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Of one seat."""

    run: bytes
    """Id of the run."""
    header: bytes
    key: bytes = b""
    """The run's, for who may order its journal."""


def read_charter(content: bytes) -> Charter:
    """What the lead has sent."""
    return msgspec.msgpack.decode(content, type=Charter)


def kept_identity(path: Path) -> Identity:
    """The key in a file, made at the first call.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        write_durably(path, Identity.generate().private_key)
    private_key = path.read_bytes()
    if len(private_key) != KEY_BYTES:
        raise ValueError(f"{path} is damaged: restore it, or begin another run")
    return Identity(private_key)
