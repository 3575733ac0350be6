"""`farflung config`: what it takes, commands take; what it refuses, they refuse; and its schema says the same."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from farflung.apps.config.files import load
from farflung.apps.config.schema import schema_of
from farflung.apps.finetune.method import METHODS
from farflung.apps.fork_server import ForkServer
from farflung.apps.pretrain.algorithms import NAMES
from farflung.apps.runs.form import RunForm
from farflung.apps.runs.job import KINDS, form_of, job_of
from tests.apps.processes import ROOT
from tests.forge import Ended, run

EXAMPLES = {kind: ROOT / "examples" / f"{kind}.toml" for kind in KINDS}


@pytest.fixture
def farflung(forge: ForkServer, tmp_path: Path) -> Callable[..., Ended]:
    """Runs a command to its end, with these arguments and variables."""
    return partial(run, forge, tmp_path)


@pytest.fixture(scope="module")
def forms() -> list[RunForm[Any]]:
    return [form_of(kind) for kind in KINDS]


@pytest.fixture(scope="module")
def schema(forms: list[RunForm[Any]]) -> jsonschema.Draft202012Validator:
    """Of files of any kind; itself a schema as the standard wants it."""
    body = json.loads(json.dumps(schema_of(forms)))
    jsonschema.Draft202012Validator.check_schema(body)
    return jsonschema.Draft202012Validator(body)


@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_runs_of_their_kind_for_reader_and_schema(
    kind: str, schema: jsonschema.Draft202012Validator
) -> None:
    form, found = load(EXAMPLES[kind], None, (), {}, is_simulated=True)
    assert form is job_of(kind).form and form.kind == found.run.kind == kind
    assert not list(schema.iter_errors(tomllib.loads(EXAMPLES[kind].read_text())))


def effective(form: RunForm[Any]) -> list[dict[str, Any]]:
    """Runs in full, one for each name that a section of this kind can have."""
    overrides = {"pretrain": [f"algorithm={{name='{name}'}}" for name in NAMES]}
    overrides |= {"finetune": [f"method.name={name}" for name in METHODS], "align": ["run.seed=1"]}
    return [form.tables(form.load(None, [override])) for override in overrides[form.kind]]


def test_every_run_in_full_is_in_the_schema(forms: list[RunForm[Any]], schema: jsonschema.Draft202012Validator) -> None:
    for form in forms:
        for tables in effective(form):
            assert not list(schema.iter_errors(json.loads(json.dumps(tables))))


def test_a_key_too_many_is_refused_by_reader_and_schema_in_every_section(
    forms: list[RunForm[Any]], schema: jsonschema.Draft202012Validator
) -> None:
    num_refused = 0
    for form in forms:
        for tables in effective(form):
            for section in [name for name, value in tables.items() if isinstance(value, dict)]:
                if (form.kind, section) == ("pretrain", "model"):
                    continue  # the keys of any Hugging Face configuration
                wrong = json.loads(json.dumps(tables))
                wrong[section]["nonsense"] = 1
                assert list(schema.iter_errors(wrong)), section
                with pytest.raises(ValueError, match="unknown key 'nonsense'"):
                    form.read(wrong)
                num_refused += 1
    assert num_refused > 50


def test_the_schema_explains_keys_as_their_classes_do(schema: jsonschema.Draft202012Validator) -> None:
    whole: Any = schema.schema
    link = whole["$defs"]["LinkSettings"]["properties"]
    assert link["latency_ms"]["description"] == "Milliseconds one way."
    pretrain = next(one for one in whole["oneOf"] if one["title"] == "pretrain")
    rounds = pretrain["properties"]["algorithm"]["oneOf"][0]["properties"]
    assert rounds["parameters_every"]["description"].startswith("K_x, in steps")
    hierarchy = pretrain["properties"]["algorithm"]["oneOf"][1]["properties"]
    assert "merge_weight" in hierarchy and "budget_steps" not in hierarchy


def test_the_environment_changes_the_file_and_the_command_line_changes_both(tmp_path: Path) -> None:
    form, path = form_of("finetune"), EXAMPLES["finetune"]
    environment = {"FARFLUNG_TRAINING__ROUNDS": "7", "FARFLUNG_METHOD__NUM_SLOTS": "16", "FARFLUNG_HOME": "/nowhere"}
    found = form.load(path, environment=environment)
    assert (found.training.rounds, found.method.num_slots) == (7, 16)
    assert form.load(path, ["training.rounds=9"], environment=environment).training.rounds == 9
    with pytest.raises(ValueError, match=r"did you mean 'rounds'\? \(the environment sets FARFLUNG_TRAINING__ROUND\)"):
        form.load(path, environment={"FARFLUNG_TRAINING__ROUND": "7"})


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_and_shown_without_torch(kind: str) -> None:
    program = (
        "import sys; from farflung.apps.config.commands import check, show; from pathlib import Path; "
        f"path = Path({str(EXAMPLES[kind])!r}); check(path); show(path); "
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and "no mistake found" in done.stdout, done.stderr


@pytest.mark.loopback
def test_the_command_checks_shows_and_describes(farflung: Callable[..., Ended], tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(EXAMPLES["finetune"].read_text())
    assert "no mistake found; farflung finetune" in farflung("config", "check", str(path)).text
    shown = farflung("config", "show", str(path), "--set", "run.seed=3", FARFLUNG_TRAINING__ROUNDS="8")
    tables = tomllib.loads(shown.text)
    assert (tables["run"]["seed"], tables["training"]["rounds"]) == (3, 8)
    show = partial(farflung, "finetune", str(path), "--show", "--set", "run.seed=3")
    assert shown.text == show("--set", "training.rounds=8").text == show(FARFLUNG_TRAINING__ROUNDS="8").text
    assert json.loads(farflung("config", "schema", "--kind", "finetune").text)["title"] == "finetune"


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("before", "after", "arguments", "sentence"),
    [
        ("rounds", "round", [], "unknown key 'round' in [training]: did you mean 'rounds'?"),
        ('kind = "finetune"', "", [], "does not say which command it is for"),
        ('kind = "finetune"', 'kind = "fintune"', [], "did you mean 'finetune'?"),
        ("rounds", "rounds", ["--kind", "align"], "start it with `farflung finetune`"),
        ("[run]", "[run", [], "is not TOML"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    farflung: Callable[..., Ended], tmp_path: Path, before: str, after: str, arguments: list[str], sentence: str
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(EXAMPLES["finetune"].read_text().replace(before, after))
    ended = farflung("config", "check", str(path), *arguments)
    assert ended.status == 2 and sentence in ended.text
    assert len(ended.text.strip().splitlines()) == 1


def test_a_shell_completes_commands() -> None:
    asked = {"_FARFLUNG_COMPLETE": "complete_bash", "COMP_WORDS": "farflung config s", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "farflung"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["show", "schema"], done.stderr
