"""The run file of fine-tuning: read strictly, shown in full, every mistake a sentence before anything is written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from farflung.apps.finetune.job import Finetuning
from farflung.apps.finetune.run_file import FINETUNE
from farflung.apps.runs.command import Wish, do_run
from farflung.apps.runs.toml_text import toml_text
from tests.apps.runs import write_run
from tests.apps.tunings import write_tuning

MISTAKES = [
    ("training.round=5", "unknown key 'round' in [training]: did you mean 'rounds'?"),
    ("method.num_slot=5", "unknown key 'num_slot' in [method]: did you mean 'num_slots'?"),
    ('method.name="onebite"', "unknown method 'onebite' in [method]: did you mean 'onebyte'?"),
    ('model.dtype="float23"', "did you mean 'float32'?"),
    ("method.quorum=1.5", "quorum is 1.5"),
    ("training.rounds=0", "rounds must be at least 1"),
    ('model.path=""', "give [model] with path"),
    ('run.kind="pretrain"', "start it with `farflung pretrain`"),
]


@pytest.mark.parametrize(("override", "sentence"), MISTAKES)
def test_a_mistake_in_the_file_is_one_sentence(override: str, sentence: str, tmp_path: Path) -> None:
    path = write_tuning(tmp_path)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        FINETUNE.load(path, (override,))


def test_what_is_shown_is_the_same_run() -> None:
    run = FINETUNE.read({"training": {"rounds": 3}})
    assert FINETUNE.read(FINETUNE.tables(run)) == run
    assert 'name = "onebyte"' in toml_text(FINETUNE.tables(run))


def test_the_file_of_another_kind_of_run_is_told_apart(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    path.write_text(path.read_text().replace("[run]", '[run]\nkind = "pretrain"'))
    with pytest.raises(ValueError, match="start it with `farflung pretrain`"):
        FINETUNE.load(path)


REFUSED = [
    ('data.train="nowhere.tsv"', "nowhere.tsv"),
    ('model.path="nowhere"', "is no model that transformers can load"),
    ('model.tensors=["atention"]', "matches no tensor of this model: did you mean 'attention'?"),
    ('objective.label_words={good="good", bad="bad worse"}', "the label word 'bad worse' is 2 tokens"),
    ("method.exponent=1", "cannot be told in steps of 2^-1"),
    ("logging.wandb=true", "pip install wandb"),
]


@pytest.mark.parametrize(("override", "sentence"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(override: str, sentence: str, tmp_path: Path) -> None:
    path = write_tuning(tmp_path)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        do_run(Finetuning(), Wish(path=path, overrides=(override,), is_simulated=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["witness", "candidate"])
def test_who_does_not_measure_does_without_torch(part: str) -> None:
    program = (
        "import sys; from farflung.apps.runs.job import job_of; import farflung.apps.runs.take_seat; "
        f"import farflung.apps.finetune.{part}; job_of('finetune').form.read({{}}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0
