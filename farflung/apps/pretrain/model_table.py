"""[model] of a run file, checked: a folder or Hub id, or the keys of any Hugging Face configuration.

Transformers says which keys a family has, but loading it takes seconds. So the text of a family's configuration is read
first, for the fields that its class declares itself; only a family or key that is not found there is asked of
transformers, whose word is final.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from farflung.apps.runs.reader import check_known

PATH, WEIGHTS, MODEL_TYPE = "path", "weights", "model_type"
REFERENCE_KEYS = (PATH, WEIGHTS)
MODEL_TYPE_DEFAULT = "llama"


def check_model_table(table: Mapping[str, Any]) -> None:
    """Refuse a table that describes no model; loads nothing.

    Raises:
        ValueError: an unknown family or key (with the nearest known one), or both a path and a configuration.
    """
    if PATH in table:
        for name in table:
            if name not in REFERENCE_KEYS:
                raise ValueError(f"[model] has path, which brings its configuration: take {name!r} out")
        if not isinstance(table[PATH], str) or not isinstance(table.get(WEIGHTS, True), bool):
            raise ValueError("in [model], path is a text and weights is true or false")
        return
    family = table.get(MODEL_TYPE, MODEL_TYPE_DEFAULT)
    declared = keys_declared(str(family))
    if not declared or not table.keys() <= {MODEL_TYPE, *declared}:
        _check_against_transformers(family, table)


def _check_against_transformers(family: Any, table: Mapping[str, Any]) -> None:
    from dataclasses import fields

    from transformers import CONFIG_MAPPING

    check_known(family, list(CONFIG_MAPPING), "model.model_type", what="family of models")
    known = [MODEL_TYPE, *(field.name for field in fields(CONFIG_MAPPING[family]))]
    for name in table:
        check_known(name, known, "model")


@functools.cache
def keys_declared(family: str) -> frozenset[str]:
    """Fields that the class of a family's configuration declares in its own text; none if no such class is found."""
    library = importlib.util.find_spec("transformers")
    assert library is not None and library.origin is not None, "a dependency of this package"
    name = family.replace("-", "_")
    path = Path(library.origin).parent / "models" / name / f"configuration_{name}.py"
    if not name.isidentifier() or not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and _model_type(node) == family]
    return frozenset(_fields(classes[0])) if len(classes) == 1 else frozenset()


def _model_type(node: ast.ClassDef) -> str | None:
    for one in node.body:
        match one:
            case ast.Assign(targets=[ast.Name(id="model_type")], value=ast.Constant(value=str(value))):
                return value
            case _:
                pass
    return None


def _fields(node: ast.ClassDef) -> Iterator[str]:
    for one in node.body:
        match one:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                if "ClassVar" not in ast.unparse(annotation):
                    yield name
            case _:
                pass
