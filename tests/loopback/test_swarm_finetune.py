"""`farflung finetune --join` through real block servers: it learns, stops, goes on, and peft loads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from farflung.apps.finetune.accuracy import score
from farflung.apps.finetune.labelled import read_task
from farflung.apps.finetune.run_file import FINETUNE
from farflung.apps.runs.history import read_history
from tests.loopback.fleet import Fleet, Program, wait_until
from tests.loopback.pretraining import UNENDING, Command, interrupt, with_budget

pytestmark = [
    pytest.mark.loopback,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

RUN = """
[run]
kind = "finetune"
folder = "{folder}/run"
[model]
path = "{model}"
[data]
train = "{folder}/train.tsv"
text = 0
label = 1
[objective]
template = "{{text}}\\n"
label_words = {{ 0 = "b", 1 = "a" }}
[training]
rounds = {rounds}
batch_size = 8
evaluation_rounds = 4
[method]
name = "lora"
learning_rate = 1e-2
rank = 2
micro_batch_tokens = 24
[logging]
every_seconds = 0.01
tensorboard = false
"""
TEXTS = [f"{word}{number}\t{label}\n" for number in range(12) for word, label in (("class Tree", 0), ("return len", 1))]
Lead = Callable[..., Command]


def write_run(folder: Path, model: Path, rounds: int) -> Path:
    (folder / "train.tsv").write_text("".join(TEXTS))
    path = folder / "run.toml"
    path.write_text(RUN.format(folder=folder, model=model, rounds=rounds))
    return path


def curve(command: Command) -> dict[int, float]:
    """The loss of every round that its log has."""
    points = read_history(command.folder / "log.jsonl").points
    return {int(one.values["round"]): one.values["training loss"] for one in points if "training loss" in one.values}


def wait_rounds(command: Command, count: int) -> None:
    def are_done() -> bool:
        assert command.process.poll() is None, command.text
        return max(curve(command), default=0) >= count

    wait_until(are_done, f"{count} rounds are done")


def stops_at(command: Command, count: int) -> None:
    """Ctrl-C after so many rounds."""
    wait_rounds(command, count)
    interrupt(command)


def test_it_learns_stops_goes_on_and_peft_loads_it(fleet: Fleet, folder: Path, tmp_path: Path, lead: Lead) -> None:
    path, ticket = write_run(tmp_path, folder, UNENDING), fleet.ticket()
    stopped = lead(str(path), "--join", ticket, kind="finetune")
    stops_at(stopped, 3)
    assert f"Go on with: farflung finetune {tmp_path}/run/run.toml --resume --join TICKET" in stopped.text
    rounds = max(curve(stopped)) + 37
    path = with_budget(stopped, "rounds", UNENDING, rounds)
    command = lead(path, "--resume", "--join", ticket, kind="finetune")
    assert command.wait() == 0, command.text
    summary: dict[str, Any] = json.loads((command.folder / "summary.json").read_text())
    assert summary["method"] == "lora" and summary["rounds"] == rounds and summary["bytes_sent"] > 0
    assert summary["loss"] < summary["loss_before"] - 0.3 and summary["accuracy"] == 1.0
    assert not any(ticket in one.read_text(errors="replace") for one in command.folder.rglob("*") if one.is_file())
    run = FINETUNE.load(Path(path))
    assert run.data is not None and run.objective is not None
    base: Any = AutoModelForCausalLM.from_pretrained(folder)
    task = read_task(run.data, run.objective, AutoTokenizer.from_pretrained(folder), base)
    adapted = PeftModel.from_pretrained(base, str(command.folder / "adapter")).eval()
    found = score(adapted, task.objective, task.train)
    assert found.loss == pytest.approx(summary["loss"], abs=1e-4) and found.accuracy == 1.0


@pytest.mark.slow
def test_servers_that_are_killed_change_nothing_in_the_curve(
    fleet: Fleet, folder: Path, tmp_path: Path, lead: Lead
) -> None:
    """One after another, while gradients come through them; others take their places."""
    curves: list[dict[int, float]] = []
    for name in ("undisturbed", "killed"):
        place = tmp_path / name
        place.mkdir()
        path = write_run(place, folder, 60)
        command = lead(str(path), "--join", fleet.ticket(), "--set", f'run.folder="{tmp_path}/run"', kind="finetune")
        if name == "killed":
            for count in (5, 20, 35):
                wait_rounds(command, count)
                fleet.replace(busiest(fleet))
                fleet.complete()
        assert command.wait() == 0, command.text
        curves.append(curve(command))
        (tmp_path / "run").rename(place / "run")
    plain, disturbed = curves
    assert plain.keys() == disturbed.keys() == set(range(1, 61))
    assert max(abs(plain[number] - disturbed[number]) for number in plain) <= 1e-4


def busiest(fleet: Fleet) -> Program:
    """The oldest server of the second half: one that is asked for gradients first."""
    return next(server for server in fleet.servers if server.blocks == "2:4")


@pytest.mark.slow
def test_a_first_try_starts_its_own_servers_and_learns(tmp_path: Path, lead: Lead) -> None:
    command = lead("--method", "lora", "--set", f'run.folder="{tmp_path}/run"', kind="finetune")
    assert command.wait() == 0, command.text
    summary = json.loads((command.folder / "summary.json").read_text())
    assert summary["accuracy"] > summary["accuracy_before"] + 0.25
    assert sorted(one.name for one in (command.folder / "servers").iterdir()) == ["server-0.log", "server-1.log"]
