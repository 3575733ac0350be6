"""`farflung finetune --simulate`: from a run file to a journal, its model, a summary and a plot, in virtual time."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from farflung.apps.finetune.job import Finetuning
from farflung.apps.finetune.run_file import FINETUNE
from farflung.apps.runs.command import Wish, do_run
from farflung.apps.runs.toml_text import toml_text
from farflung.systems.onebyte.journal import JournalSection, read_journal
from farflung.systems.onebyte.records import Round
from tests.apps.tunings import write_tuning


def simulate(path: Path, *overrides: str) -> dict[str, Any]:
    """Its summary."""
    do_run(Finetuning(), Wish(path=path, overrides=overrides, is_simulated=True))
    folder = next((one.partition("=")[2] for one in overrides if one.startswith("run.folder=")), path.parent / "run")
    return json.loads((Path(folder) / "summary.json").read_text())


def journal(folder: Path) -> JournalSection:
    (section,) = read_journal(BytesIO((folder / "journal.flj").read_bytes()), name="journal")
    return section


def codes_of(section: JournalSection) -> list[bytes]:
    """The bytes of each round, by slot."""
    rounds = [record for record in section.rounds if isinstance(record, Round)]
    return [
        b"".join(part.codes for part in sorted(record.parts, key=lambda part: part.first_slot)) for record in rounds
    ]


def test_a_simulated_run_leaves_a_journal_and_its_model(tmp_path: Path) -> None:
    path = write_tuning(tmp_path)
    summary = simulate(path)
    folder = tmp_path / "run"
    assert {"journal.flj", "log.jsonl", "model", "plot.svg", "run.toml"} <= {one.name for one in folder.iterdir()}
    assert summary["loss"] < summary["loss_before"] - 0.1
    assert summary["rounds"] == 12 and summary["entries"] == 12 * 16
    assert summary["journal_bytes"] == (folder / "journal.flj").stat().st_size < 3000
    assert summary["bytes_sent"] * 100 < summary["gradient_bytes"]
    assert set(summary["slots"]) == {"east-worker-0", "west-worker-1"} and min(summary["slots"].values()) > 0
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    told = {one["decision"] for one in entries if one["kind"] == "decision"}
    assert told == {f"its weights have the state {summary['state']}"}, "of every worker, and of the replay"
    assert any("accuracy" in one["values"] for one in entries if one["kind"] == "report")
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    prompt = AutoTokenizer.from_pretrained(folder / "model")("baba :", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(prompt).logits).all()


def test_one_worker_and_four_write_the_same_rounds(tmp_path: Path) -> None:
    path = write_tuning(tmp_path, rounds=6)
    alone = '[{name="here", workers=1}]'
    states = [
        simulate(path, f"run.folder={tmp_path}/one", f"regions={alone}", "links=[]")["state"],
        simulate(path, f"run.folder={tmp_path}/four", 'regions=[{name="here", workers=4}]', "links=[]")["state"],
    ]
    assert states[0] == states[1]
    assert codes_of(journal(tmp_path / "one")) == codes_of(journal(tmp_path / "four"))


def test_what_cannot_be_made_longer_says_so(tmp_path: Path) -> None:
    path = write_tuning(tmp_path, rounds=2)
    simulate(path)
    more = ("training.rounds=3",)
    with pytest.raises(ValueError, match=r"is closed after 2 rounds and takes no more: tune its model further"):
        do_run(Finetuning(), Wish(path=path, overrides=more, is_resumed=True))
    (tmp_path / "run" / "journal.flj").unlink()
    for kept, sentence in (
        ('method.decay="linear"', "falls to nothing over 2 rounds"),
        ("method={shared_slots=true, num_slots=8, privacy={}}", "was chosen for 2 rounds"),
    ):
        run = FINETUNE.load(path, (kept,))
        (tmp_path / "run" / "run.toml").write_text(toml_text(FINETUNE.tables(run)))
        with pytest.raises(ValueError, match=sentence):
            do_run(Finetuning(), Wish(path=tmp_path / "run" / "run.toml", overrides=more, is_resumed=True))


def test_a_run_is_resumed_as_it_was_begun(tmp_path: Path) -> None:
    path = write_tuning(tmp_path, rounds=2)
    simulate(path)
    with pytest.raises(ValueError, match="already holds a run: give --resume"):
        simulate(path)
    with pytest.raises(ValueError, match=r"begun with another \[model\] \(path\)"):
        do_run(Finetuning(), Wish(path=path, overrides=(f"model.path={tmp_path}/else",), is_resumed=True))
    with pytest.raises(ValueError, match=r"begun with another \[method\] \(epsilon\)"):
        do_run(Finetuning(), Wish(path=path, overrides=("method.epsilon=0.01",), is_resumed=True))
