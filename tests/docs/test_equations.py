"""Each function that the table of equations names is there."""

import importlib
import re
from functools import reduce

import pytest

from tests.docs.reader import ROOT

NAME = re.compile(r"`(farflung(?:\.\w+)+)` \|$", re.MULTILINE)


def named(name: str) -> object:
    """What a dotted name means: the longest part of it that is a module, and attributes of that."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[length:], module)
    raise ModuleNotFoundError(name)


def test_every_equation_has_its_function() -> None:
    page = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    names = NAME.findall(page)
    assert len(names) > 25 and len(names) == len([line for line in page.splitlines() if line.endswith("` |")])
    missing: list[str] = []
    for name in names:
        try:
            named(name)
        except (AttributeError, ModuleNotFoundError):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("name", ["farflung.learn.rules.Newton", "farflung.learn.laws.Nesterov.update"])
def test_a_planted_name_is_missed(name: str) -> None:
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        named(name)
