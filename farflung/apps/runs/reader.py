"""Reads tables of a TOML file into dataclasses, strictly: an unknown key or a wrong type ends in one sentence."""

import dataclasses
import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

Settings = TypeVar("Settings")
PREFIX = "FARFLUNG_"
"""Of variables that mean this program; those that name a section and a key have __ between them."""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        ValueError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: give the name of a TOML file in it") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text: give a TOML file in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None


def apply_override(tables: dict[str, Any], override: str) -> None:
    """Set one value from `training.batch_size=4`; the value is TOML, or else taken as a text.

    Raises:
        ValueError: not of that form, or the key runs through a value that is no table.
    """
    key, sign, text = override.partition("=")
    names = key.strip().split(".")
    if not sign or not all(names):
        raise ValueError(f"--set takes key=value, such as training.batch_size=4, not {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table: Any = tables
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ValueError(f"--set {override!r}: {name!r} is no table that values can be set in")
    table[names[-1]] = value


def overrides_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What variables such as FARFLUNG_TRAINING__BATCH_SIZE=4 set, by their name: `training.batch_size=4`."""
    own = {name: name.removeprefix(PREFIX) for name in sorted(environment) if name.startswith(PREFIX)}
    return {name: f"{key.lower().replace('__', '.')}={environment[name]}" for name, key in own.items() if "__" in key}


def read(kind: type[Settings], table: object, where: str) -> Settings:
    """`table` as a dataclass of type `kind`; `where` names it in sentences, such as "regions[0]" ("": the whole file).

    Raises:
        ValueError: an unknown key (names the nearest known one), a wrong type, or what the dataclass itself refuses.
    """
    _check_keys(kind, table, where)
    try:
        return msgspec.convert(table, type=kind)
    except msgspec.ValidationError as error:
        raise ValueError(_sentence(str(error), where)) from None


def read_table(value: object, where: str) -> Mapping[str, Any]:
    """`value`, if it is a table.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a table: write [{where}] and its keys below")
    return typing.cast(Mapping[str, Any], value)


def check_known(name: str, known: Iterable[str], where: str, *, what: str = "key") -> None:
    """Refuse a key (or value) that is not known, with the nearest one that is."""
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    raise ValueError(f"unknown {what} {name!r} {_place(where)}: {advice}")


def _check_keys(kind: Any, value: object, where: str) -> None:
    """Walk dataclasses within dataclasses; what else is wrong is found by the conversion."""
    for option in _options(kind):
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            hints = typing.get_type_hints(option)
            known = [field.name for field in dataclasses.fields(option) if field.init]
            for name, inner in value.items():
                check_known(str(name), known, where)
                _check_keys(hints[name], inner, f"{where}.{name}" if where else name)
        elif typing.get_origin(option) in (tuple, list) and isinstance(value, list):
            for index, inner in enumerate(value):
                _check_keys(typing.get_args(option)[0], inner, f"{where}[{index}]")
    words = [word for option in _options(kind) for word in typing.get_args(option) if isinstance(word, str)]
    if isinstance(value, str) and words and str not in _options(kind):
        check_known(value, words, where, what="value")


def _options(kind: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def _place(where: str) -> str:
    return f"in [{where}]" if where else "at the top of the run file"


def _sentence(message: str, where: str) -> str:
    """`Expected `int`, got `str` - at `$.batch_size`` -> `training.batch_size: expected int, got text`."""
    what, _, path = message.partition(" - at ")
    path = path.strip("`").removeprefix("$").removeprefix(".")
    place = f"{where}.{path}" if where and path and not path.startswith("[") else where + path
    for name, spoken in (("str", "text"), ("float", "number"), ("int", "whole number"), ("bool", "true or false")):
        what = re.sub(rf"\b{name}\b", spoken, what)
    missing = re.match(r"Object missing required field `(.*)`", what)
    if missing is not None:
        return f"{place or 'the run file'} lacks the key {missing[1]!r}"
    for name, spoken in (("array", "list"), ("object", "table"), (" | ", " or "), ("null", "nothing"), ("`", "")):
        what = what.replace(name, spoken)
    if what.startswith("Expected"):
        what = what[0].lower() + what[1:]
    return f"{place}: {what}" if place else what
