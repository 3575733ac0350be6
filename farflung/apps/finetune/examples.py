"""Labelled texts from files: TSV (one a line, columns by name or by number) and JSON Lines (fields by name)."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from farflung.learn.text_files import is_json_lines

NAMES_SHOWN_MAX = 12
TSV_FIELD_CHARACTERS_MAX = 1 << 24


class Example(NamedTuple):
    """A text and what is to be said about it."""

    text: str
    label: str
    """Empty where the file is read without labels."""
    where: str
    """File and line, for messages."""


def read_examples(path: Path, text: str | int, label: str | int | None) -> list[Example]:
    """All examples of a file, in its order.

    `text`, `label`: columns. By name, a TSV file has a first line of names; by number (from 0) it has none, and JSON
    Lines have names alone. Without `label` the texts stand alone.

    Raises:
        ValueError: there is no such file, it is not of its form, a column is missing, or nothing is in it.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}: give a TSV or JSON Lines file with texts and labels") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text ({error}): give a TSV or JSON Lines file") from None
    read = _json_rows if is_json_lines(path) else _tsv_rows
    columns = [column for column in (text, label) if column is not None]
    found: list[Example] = []
    for where, row in read(path, content, columns):
        values = [_value(row, column, where) for column in columns]
        if not values[0].strip():
            raise ValueError(f"{where} has an empty text: take the line out")
        found.append(Example(values[0], values[1] if len(values) > 1 else "", where))
    if not found:
        raise ValueError(f"{path} has no examples: give a file with at least one line of text and label")
    return found


Row = Mapping[str | int, str]


def _tsv_rows(path: Path, content: str, columns: Sequence[str | int]) -> Iterator[tuple[str, Row]]:
    """Fields are as they stand, quotation marks included."""
    csv.field_size_limit(TSV_FIELD_CHARACTERS_MAX)
    lines = csv.reader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = None if all(isinstance(column, int) for column in columns) else next(lines, [])
    for fields in lines:
        if not any(fields):
            continue
        where = f"{path}:{lines.line_num}"
        if names is None:
            yield where, dict(enumerate(fields))
            continue
        if len(fields) > len(names):
            raise ValueError(
                f"{where} has {len(fields)} columns and the first line names {len(names)}: name them all there, or "
                f"give columns by number (data.text = 0) if the file has no line of names"
            )
        yield where, dict(zip(names, fields, strict=False))


def _json_rows(path: Path, content: str, columns: Sequence[str | int]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is no JSON ({error.msg}): write one JSON object a line") from None
        if not isinstance(record, dict):
            raise ValueError(f"{where} is not an object with fields: write one JSON object a line")
        yield where, {str(name): _spelled(value, f"{where}, field {name!r}") for name, value in record.items()}


def _spelled(value: object, where: str) -> str:
    """Labels may be numbers; `true` is spelled as in JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else ""


def _value(row: Row, column: str | int, where: str) -> str:
    if column in row:
        return row[column]
    names = [str(name) for name in row][:NAMES_SHOWN_MAX]
    key = f"column {column}" if isinstance(column, int) else f"column {column!r}"
    raise ValueError(
        f"{where} has no {key} (there are: {', '.join(names) or 'none'}): set data.text and data.label to names of "
        f"columns, or to their numbers from 0 in a TSV file without a line of names"
    )
