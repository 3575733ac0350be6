"""Run files as JSON schema, from the types that read them, so that an editor completes keys and marks mistakes."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from farflung.apps.runs.form import Choice, NamedSection, RunForm

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
AnyForm = RunForm[Any]


def schema_of(forms: Sequence[AnyForm]) -> Schema:
    """What may be in a file of these kinds; of several, `run.kind` says which."""
    choices = [choice for form in forms for named in form.named.values() for choice in named.choices]
    plain_types = [kind for form in forms for name, kind in form.types.items() if name not in form.named]
    types = [*plain_types, *(choice.settings for choice in choices)]
    found, components = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    _explain(types, components)
    bodies = iter(found)
    sections = [
        {name: _noted(form.run_type, name, next(bodies)) for name in form.types if name not in form.named}
        for form in forms
    ]
    for form, own in zip(forms, sections, strict=True):
        for name, named in form.named.items():
            own[name] = _named(named, [_component(next(bodies), components) for _ in named.choices])
    whole = [_whole(form, own, must_say_kind=len(forms) > 1) for form, own in zip(forms, sections, strict=True)]
    body = whole[0] if len(whole) == 1 else {"oneOf": whole}
    return {"$schema": DIALECT, "title": "farflung run file", **body, "$defs": components}


def _whole(form: AnyForm, sections: dict[str, Schema], *, must_say_kind: bool) -> Schema:
    kind = {"type": "object", "properties": {"kind": {"const": form.kind}}}
    if must_say_kind:
        kind["required"] = ["kind"]
    return {
        "title": form.kind,
        "type": "object",
        "properties": {**sections, "run": {"allOf": [sections["run"], kind]}},
        "required": ["run"] if must_say_kind else [],
        "additionalProperties": False,
    }


def _named(named: NamedSection, components: Sequence[Schema]) -> Schema:
    """One alternative for each group of names that have the same keys."""
    return {
        "type": "object",
        "oneOf": [
            _alternative(choice, component, is_default=named.name_default in choice.names)
            for choice, component in zip(named.choices, components, strict=True)
        ],
    }


def _alternative(choice: Choice, component: Schema, *, is_default: bool) -> Schema:
    # What a key is where it is left out depends on the name, so that no default is told.
    keys = {
        name: {word: value for word, value in key.items() if word != "default"}
        for name, key in component["properties"].items()
        if name not in choice.hidden
    }
    for name, note in notes_of(choice.explained_in or choice.settings).items():
        if name in keys:
            keys[name]["description"] = note
    return {
        "properties": {"name": {"enum": list(choice.names)}, **keys},
        "required": [] if is_default else ["name"],
        "additionalProperties": False,
    }


def _component(reference: Schema, components: dict[str, Schema]) -> Schema:
    return components[reference["$ref"].rpartition("/")[2]]


def _explain(types: Sequence[Any], components: dict[str, Schema]) -> None:
    """Refuse unknown keys, as reading does, and say of each key what its class says."""
    classes = dict.fromkeys(found for kind in types for found in _dataclasses_in(kind))
    for found in classes:
        full = f"{found.__module__}.{found.__qualname__}"  # where two classes have the same name
        component = components[full if full in components else found.__name__]
        component["additionalProperties"] = False
        for name, note in notes_of(found).items():
            if name in component["properties"]:
                component["properties"][name]["description"] = note


def _noted(owner: type, name: str, body: Schema) -> Schema:
    note = notes_of(owner).get(name)
    return {**body, "description": note} if note is not None else body


def _dataclasses_in(kind: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield kind
        for inner in typing.get_type_hints(kind).values():
            yield from _dataclasses_in(inner)
    for inner in getattr(kind, "__args__", ()):
        yield from _dataclasses_in(inner)


def notes_of(kind: type) -> dict[str, str]:
    """The texts below the fields of a class and of those it comes from, by field."""
    notes: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        except (OSError, TypeError):  # made by a program, or shipped without source
            continue
        assert isinstance(tree, ast.ClassDef)
        for before, after in zip(tree.body, tree.body[1:], strict=False):
            match before, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(note))):
                    notes[name] = " ".join(note.split())
                case _:
                    pass
    return notes
