"""Mistakes in a run that tunes through a swarm: one sentence each, before anything is started or written."""

from pathlib import Path
from typing import Any

import pytest

from farflung.apps.finetune.job import Finetuning
from farflung.apps.runs.command import Wish, do_run
from tests.apps.tunings import write_tuning

REFUSED: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({}, (), "a ticket is needed.*--servers 2 starts block servers on this machine"),
    ({"ticket": "nonsense"}, (), "this is not a ticket"),
    ({"ticket": "x", "num_servers": 2}, (), "give one of them"),
    ({"num_servers": 3}, (), "has 2 blocks, and each server holds one at least"),
    ({"num_servers": 2}, ('method.name="adam"',), "--join and --servers are for tuning through a swarm"),
    ({"num_servers": 2}, ('method.name="promt"',), "did you mean 'prompt'"),
    ({"num_servers": 2}, ("method.num_tokens=60",), "with 60 trained ones before them.*attends over 64"),
    ({"num_servers": 2}, ('method.name="lora"', 'method.modules=["q_prj"]'), "no linear layer .* is called 'q_prj'"),
    ({"num_servers": 2}, ('method.name="lora"', "method.rank=0"), "rank must be at least 1"),
    ({"num_servers": 2}, ("method.warmup=1.0",), "warmup is a share of the rounds"),
    ({"num_servers": 2}, ('model.dtype="bfloat16"',), "leave dtype, quantisation and tensors out of"),
    ({"num_servers": 2}, ('objective.kind="reward"', 'objective.reward="a:b"'), "a reward has no gradient"),
    ({"num_servers": 2}, ('objective.kind="scores"',), "has the score '(good|bad)', which is no number"),
    ({"num_servers": 2}, ('objective.kind="classes"', "data.label=7"), "has no column 7"),
    ({"num_servers": 2}, ('data.train="missing.tsv"',), "there is no file missing.tsv"),
    ({}, ('method.name="adam"', 'objective.kind="classes"'), "trains a head beside the model"),
    ({}, ('method.name="onebyte"', 'objective.kind="preferences"'), "trains a head beside the model"),
]


@pytest.mark.parametrize(("options", "overrides", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_is_said_before_anything_starts(
    options: dict[str, Any], overrides: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FARFLUNG_TICKET", raising=False)
    wish = Wish(path=write_tuning(tmp_path), overrides=('method.name="prompt"', *overrides))
    with pytest.raises(ValueError, match=sentence):
        do_run(Finetuning(**options), wish)
    assert not (tmp_path / "run").exists()


def test_a_head_needs_labels(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(write_tuning(tmp_path).read_text().replace("[data]", "[data]\ntext = 0\nlabel = 0"))
    (tmp_path / "same.tsv").write_text("good\ngood\n")
    overrides = ('method.name="lora"', 'objective.kind="classes"', f'data.train="{tmp_path}/same.tsv"')
    with pytest.raises(ValueError, match="all training examples have the label 'good'"):
        do_run(Finetuning(num_servers=2), Wish(path=path, overrides=overrides))
