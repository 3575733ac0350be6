"""Documents from files: texts, one document each, and JSON Lines, one document a line; both may be gzipped."""

import glob
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from farflung.learn.documents import Piece

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")
PIECE_CHARACTERS = 1 << 18
"""A longer text is read in pieces of about this length, cut at the end of a line where there is one, and each is
tokenized by itself: a token that would cross the cut is two."""
FIELDS_SHOWN_MAX = 12


class TextFiles:
    """Files in a given order as a source of documents."""

    def __init__(self, name: str, paths: Sequence[Path], text_field: str) -> None:
        self.name = name
        self._paths = tuple(paths)
        self._text_field = text_field
        """Where a line of JSON has its text."""

    def fingerprint(self) -> str:
        """A hash of the files' content and how it is read, not of their names."""
        digest = hashlib.sha256(f"{self._text_field}\0{PIECE_CHARACTERS}\0".encode())
        for path in self._paths:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{is_json_lines(path)} {content}\0".encode())
        return digest.hexdigest()

    def pieces(self) -> Iterator[Piece]:
        """All documents, file after file; empty ones are left out."""
        for path in self._paths:
            try:
                with _opened(path) as file:
                    yield from self._pieces_of(path, file)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not UTF-8 text ({error.reason}): convert it, or name the texts alone by a pattern "
                    f"such as '{path.parent}/*.txt'"
                ) from error
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(f"{path} cannot be unpacked ({error}): fetch or compress it again") from error

    def _pieces_of(self, path: Path, file: TextIO) -> Iterator[Piece]:
        if not is_json_lines(path):
            yield from _text_pieces(file)
            return
        for number, line in enumerate(file, 1):
            if line.strip() and (text := text_of(_parsed(line, path, number), self._text_field, f"{path}:{number}")):
                yield Piece(text, ends_document=True)


def find_files(pattern: str) -> list[Path]:
    """The files that a path, a folder (all below it) or a pattern names, in order of their paths; hidden ones are not.

    Raises:
        ValueError: there are none.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [
            each for each in path.rglob("*") if not any(part.startswith(".") for part in each.relative_to(path).parts)
        ]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    files = sorted(each for each in found if each.is_file())
    if files:
        return files
    if path.is_dir():
        raise ValueError(f"the folder {pattern} has no files: put texts (.txt) or JSON Lines (.jsonl) there")
    what = "matches the pattern" if glob.has_magic(pattern) else "is called"
    raise ValueError(f"no file {what} {pattern}: give a file, a folder, or a pattern such as 'texts/**/*.txt'")


def is_json_lines(path: Path) -> bool:
    """Whether a file's name says that each line of it is a JSON object."""
    return path.name.lower().removesuffix(".gz").endswith(JSON_LINES_SUFFIXES)


def text_of(record: Any, text_field: str, where: str) -> str:
    """The text of one record; `where` names it in messages.

    Raises:
        ValueError: the record has no such field, or no text in it.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where} is not an object with a field {text_field!r}: write one JSON object a line")
    fields = cast(dict[str, Any], record)
    if text_field not in fields:
        there = ", ".join(list(fields)[:FIELDS_SHOWN_MAX]) or "none"
        raise ValueError(
            f"{where} has no field {text_field!r} (there are: {there}): set text_field to the one with text"
        )
    text = fields[text_field]
    if not isinstance(text, str):
        raise ValueError(f"{where} has {_kind(text)} in its field {text_field!r}: set text_field to the one with text")
    return text


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"no text but a value of type {type(value).__name__}"


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{number} is no JSON ({error.msg}): write one JSON object a line") from error


def _text_pieces(file: TextIO) -> Iterator[Piece]:
    piece = _read_piece(file)
    while piece:
        following = _read_piece(file)
        yield Piece(piece, ends_document=not following)
        piece = following


def _read_piece(file: TextIO) -> str:
    return file.read(PIECE_CHARACTERS) + file.readline(PIECE_CHARACTERS)


def _opened(path: Path) -> TextIO:
    # A byte order mark at the beginning is no text.
    if path.suffix.lower() == ".gz":
        return io.TextIOWrapper(cast(Any, gzip.open(path, "rb")), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")
