"""Writes tables as TOML text, for `--show` and for the copy of the run file that a run keeps."""

import json
from collections.abc import Mapping
from typing import Any


def toml_text(tables: Mapping[str, Any]) -> str:
    """Tables of texts, numbers, truth values, lists and tables; reading the text gives them back."""
    return "\n".join(_table(tables, ())).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"{_key(name)} = {_value(value)}" for name, value in table.items() if not _is_section(value)]
    for name, value in table.items():
        if not _is_section(value):
            continue
        title = ".".join(map(_key, (*path, name)))
        for heading, inner in (
            [(f"[{title}]", value)] if isinstance(value, Mapping) else [(f"[[{title}]]", one) for one in value]
        ):
            lines += ["", heading, *_table(inner, (*path, name))]
    return lines


def _is_section(value: Any) -> bool:
    """Whether a value has a heading of its own: a table, or a list of tables."""
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _key(name: str) -> str:
    is_bare = bool(name) and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in name)
    return name if is_bare else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        return repr(value)  # also inf and nan, which TOML spells the same
    return json.dumps(value, ensure_ascii=False)
