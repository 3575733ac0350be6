"""Each `farflung` command that a page shows is one that the command line takes."""

from pathlib import Path
from typing import Any

import pytest
import typer

from farflung.apps import cli
from tests.docs.commands import mistake_of, shown_commands
from tests.docs.reader import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "farflung").rglob("README.md"))]


@pytest.fixture(scope="module")
def program() -> Any:
    return typer.main.get_command(cli.app)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_ones_that_there_are(program: Any, page: Path) -> None:
    mistakes = [
        f"farflung {' '.join(words)}: {mistake}"
        for words, is_whole in shown_commands(page.read_text(encoding="utf-8"))
        if (mistake := mistake_of(program, words, is_whole=is_whole))
    ]
    assert mistakes == []


def test_the_readme_shows_many() -> None:
    assert len(list(shown_commands((ROOT / "README.md").read_text(encoding="utf-8")))) > 50


@pytest.mark.parametrize(
    ("page", "mistake"),
    [
        ("`farflung dance`", "No such command 'dance'"),
        ("`farflung serve --blocks`, `farflung serve --gold`", "No such option: --gold"),
        ("```sh\nX=1 farflung serve --new-swarm  # one\n```\n", "missing: ['model']"),
        ("```sh\nfarflung status one\n```\n", "too many words: ['one']"),
        ("```sh\ntorchrun -m farflung join TICKET --rank 8\n```\n", "No such option: --rank"),
        ("```sh\nfarflung invite > friend && farflung revoke\n```\n", "missing: ['which']"),
        ("```sh\nfarflung api \\\n  --prt 8000\n```\n", "No such option: --prt"),
        ("```sh\nfarflung journal verfy x.flj\n```\n", "No such command 'verfy'"),
    ],
)
def test_a_planted_mistake_is_found(program: Any, page: str, mistake: str) -> None:
    found = [mistake_of(program, words, is_whole=is_whole) for words, is_whole in shown_commands(page)]
    assert any(one.startswith(mistake) for one in found), found
