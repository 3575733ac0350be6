"""Journals and results on disk, with sentences for what is wrong with them."""

import shutil
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

from farflung.runtime.store import write_durably
from farflung.systems.onebyte.edit import write_journal
from farflung.systems.onebyte.journal import JournalSection, read_journal

READABLE = 0o644


def open_journal(path: Path, *, is_unfinished_allowed: bool = False) -> list[JournalSection]:
    """Read and check a journal.

    Raises:
        ValueError: there is none, or it is damaged (naming the place).
    """
    try:
        with path.open("rb") as file:
            return read_journal(file, name=path.name, is_unfinished_allowed=is_unfinished_allowed)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give the path of a .flj file") from None


def save_journal(path: Path, sections: Sequence[JournalSection]) -> None:
    """Write a new journal, whole or not at all.

    Raises:
        ValueError: the file is there already, or the disk does not take it.
    """
    require_new(path)
    content = BytesIO()
    write_journal(content, sections)
    save_bytes(path, content.getvalue())


def save_bytes(path: Path, content: bytes) -> None:
    """Write a new file, whole or not at all; a ValueError if the disk does not take it."""
    try:
        write_durably(path, content, READABLE)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}): choose another place") from None


def require_new(path: Path) -> None:
    """Refuse a place where something is."""
    if path.exists():
        raise ValueError(f"{path} is there already: choose another name for the result")


def save_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside its place, and rename it: the folder is there whole or not at all.

    Raises:
        ValueError: the disk does not take it.
    """
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        unfinished.rename(target)
    except OSError as error:
        raise ValueError(f"{target} cannot be written ({error.strerror or error}): make room there") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
