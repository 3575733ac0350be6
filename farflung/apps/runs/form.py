"""The run file of one kind of run: what it is made of, how it is read and shown, and what its parts must fit.

Each section of the file is a field of one dataclass; what is set later wins:

    usual ── file ── FARFLUNG_SECTION__KEY of the environment ── --set ── read ── check ── the run
"""

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from farflung.apps.runs.reader import apply_override, check_known, overrides_of, read, read_table, read_toml
from farflung.apps.runs.run import Run, check_kind, plain

AnyRun = TypeVar("AnyRun", bound=Run)
Tables = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a section that begins with a name may have besides, for some of the names."""

    names: tuple[str, ...]
    settings: type
    """The keys, as a dataclass."""
    explained_in: type | None = None
    """The class whose text explains the keys; None: the same."""
    hidden: tuple[str, ...] = ()
    """Fields that no file may give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSection:
    """A section whose `name` decides which other keys it has."""

    read: Callable[[Mapping[str, Any]], Any]
    table: Callable[[Any], Tables]
    """The opposite of `read`: all keys, with the name."""
    choices: tuple[Choice, ...]
    name_default: str


@dataclass(frozen=True, kw_only=True)
class RunForm(Generic[AnyRun]):
    """See above; a kind of run changes what is its own."""

    kind: str
    """In `run.kind`, and on the command line."""
    run_type: type[AnyRun]
    named: Mapping[str, NamedSection] = field(default_factory=dict[str, NamedSection])

    @cached_property
    def sections(self) -> tuple[str, ...]:
        """Names of all that a file may have at its top."""
        return tuple(one.name for one in fields(self.run_type))  # pyright: ignore[reportArgumentType]

    @cached_property
    def types(self) -> dict[str, Any]:
        """Of each section."""
        return typing.get_type_hints(self.run_type)

    def load(
        self,
        path: Path | None,
        overrides: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        is_simulated: bool = False,
    ) -> AnyRun:
        """The run of a TOML file (None: the one that the command has by itself), with `--set` values on top.

        `environment`: variables, of which FARFLUNG_TRAINING__BATCH_SIZE is training.batch_size.

        Raises:
            ValueError: a mistake in it, in one sentence.
        """
        tables = {} if path is None else read_toml(path)
        variables = overrides_of(environment or {})
        try:
            for override in (*variables.values(), *overrides):
                self.override(tables, override)
            return self.read(tables if path is not None else self.without_file(tables), is_simulated=is_simulated)
        except ValueError as error:
            if not variables:
                raise
            raise ValueError(f"{error} (the environment sets {', '.join(variables)})") from None

    def read(self, tables: Mapping[str, Any], *, is_simulated: bool = False) -> AnyRun:
        """The run that these tables describe; what only the parts together tell is checked too.

        Raises:
            ValueError: as `load`.
        """
        given = self.completed({**self.usual(tables), **tables})
        check_kind(read_table(given.get("run", {}), "run"), self.kind)
        for name in given:
            self._check_section(name)
        run = self.run_type(**{name: self._section(name, value) for name, value in given.items()})
        self.check(run, is_simulated=is_simulated)
        return run

    def tables(self, run: AnyRun) -> Tables:
        """The full effective run, as the tables of its file; `read` of them is the same run."""
        values = {name: getattr(run, name) for name in self.sections if getattr(run, name) is not None}
        return {
            name: plain(self.named[name].table(value) if name in self.named else value)
            for name, value in values.items()
        }

    def _check_section(self, name: str) -> None:
        """Refuse a name that is no section, with the section where it belongs if one has such a table."""
        homes = [section for section, kind in self.types.items() if name in getattr(kind, "__dataclass_fields__", ())]
        if name not in self.sections and homes:
            raise ValueError(f"unknown key {name!r} at the top of the run file: did you mean '{homes[0]}.{name}'?")
        check_known(name, self.sections, "")

    def _section(self, name: str, value: object) -> Any:
        if name in self.named:
            return self.named[name].read(read_table(value, name))
        if typing.get_origin(self.types[name]) is not tuple:
            value = read_table(value, name)
        return read(self.types[name], value, name)

    def usual(self, tables: Mapping[str, Any]) -> Tables:
        """Sections that stand for those which a file leaves out, beside the defaults of their types."""
        return {}

    def without_file(self, tables: Tables) -> Tables:
        """What the command does by itself, with what was set otherwise."""
        return tables

    def override(self, tables: Tables, override: str) -> None:
        """Set one value, as `apply_override`."""
        apply_override(tables, override)

    def completed(self, tables: Tables) -> Tables:
        """All tables, with keys that follow from others."""
        return tables

    def check(self, run: AnyRun, *, is_simulated: bool) -> None:
        """Refuse parts that do not fit together.

        Raises:
            ValueError: says which.
        """
        raise NotImplementedError
