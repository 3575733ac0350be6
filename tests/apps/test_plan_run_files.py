"""What a plan leaves to start with is taken by the commands that it is for."""

import functools
from pathlib import Path
from typing import Any

import pytest
import typer

from farflung.apps import cli
from farflung.apps.config.files import load
from farflung.apps.plan.outcome import Outcome
from farflung.apps.plan.plan_file import plan_of
from farflung.apps.plan.planning import candidates_of
from farflung.apps.plan.sizes import sizes_of
from farflung.apps.plan.table import start_text
from farflung.apps.plan.words import LANGUAGES
from tests.docs.commands import mistake_of, shown_commands

GOALS: dict[str, dict[str, Any]] = {
    "serve": {"prompt_tokens": 8, "answer_tokens": 8},
    "pretrain": {"tokens": 10_240, "sequence_length": 32, "batch_size": 2, "methods": ["halos", "farflung"]},
    "finetune": {"updates": 10, "sequence_length": 16, "batch_size": 4},
    "align": {"updates": 10, "prompts_per_update": 2, "answers_per_prompt": 2, "answer_tokens": 8},
}


@functools.cache
def outcomes(kind: str) -> list[Outcome]:
    """Of all that is tried."""
    machine: dict[str, Any] = {"device": "L4", "watts": 70.0, "count": 2, "train_tokens_per_second": 128.0}
    plan = plan_of(
        {
            "goal": {"kind": kind, **GOALS[kind]},
            "model": {"parameters": 3e6, "layers": 2, "hidden_size": 256, "vocabulary_size": 1000},
            "sites": [{"name": "east"}, {"name": "west"}],
            "machines": [{"site": "east", **machine}, {"site": "west", **machine}],
        }
    )
    return [one.try_on(plan) for one in candidates_of(plan, sizes_of(plan.model))]


@pytest.mark.parametrize(("kind", "num_ways"), [("pretrain", 3), ("finetune", 8), ("align", 4)])
def test_run_files_are_read_without_a_mistake(kind: str, num_ways: int, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for outcome in outcomes(kind):
        path.write_text(start_text(outcome.start), encoding="utf-8")
        form, _ = load(path, None, (), {}, is_simulated=False)
        assert form.kind == kind and outcome.start_name == "run.toml", outcome.method()
    assert len(outcomes(kind)) == num_ways


@pytest.mark.parametrize("kind", list(GOALS))
def test_commands_are_ones_that_there_are(kind: str) -> None:
    program: Any = typer.main.get_command(cli.app)
    for outcome in outcomes(kind):
        lines = [line.removeprefix("# ").partition("     ")[0] for line in outcome.start if "farflung " in line]
        shown = list(shown_commands("\n".join(["```", *lines, "```", ""])))
        assert shown
        assert [mistake for words, _ in shown if (mistake := mistake_of(program, words, is_whole=True))] == []


@pytest.mark.parametrize("kind", ["finetune", "align"])
def test_every_row_is_said_in_both_languages(kind: str) -> None:
    for outcome in outcomes(kind):
        for sentence in (outcome.method, outcome.limit, outcome.confidence):
            assert all(sentence(language) for language in LANGUAGES)
            assert sentence("en") != sentence("ja")
