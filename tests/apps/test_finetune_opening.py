"""What is said before a fine-tuning run: costs, the crossover of its links, and steps that are too short."""

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from farflung.apps.finetune.materials import TuningMaterials
from farflung.apps.finetune.opening import opening_words
from farflung.apps.finetune.run_file import FINETUNE
from tests.onebyte_journals import tiny_model

RUN = """
[run]
folder = "{folder}/run"
[model]
path = "{folder}/base"
[data]
train = "{folder}/train.tsv"
[objective]
template = "{{text}} w2"
label_words = {{ good = "w3", bad = "w4" }}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base model with a tokenizer, examples and a run file."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(97)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "here"
    tiny_model().save_pretrained(folder / "base")
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0").save_pretrained(folder / "base")
    examples = [f"w{5 + number} w{20 + 3 * number}\t{'good' if number % 2 else 'bad'}" for number in range(12)]
    (folder / "train.tsv").write_text("\n".join(["text\tlabel", *examples, ""]))
    return folder


def said(folder: Path, *overrides: str) -> list[str]:
    """With these settings on top of the run file."""
    path = folder / "run.toml"
    path.write_text(RUN.format(folder=folder))
    run = FINETUNE.load(path, overrides)
    return opening_words(run, TuningMaterials.gather(run))


def test_it_tells_costs_and_crossover_and_no_more_if_all_is_well(folder: Path) -> None:
    words = said(folder)
    assert "10 to 100 times more forward passes" in words[0]
    assert "Crossover: " in words[2] and "your slowest link has 50 kbit/s" in words[2]
    assert len(words) == 4 and not any(sentence.startswith("Warning") for sentence in words)


def test_steps_that_drown_in_rounding_are_told_alike_wherever_the_run_is_kept(folder: Path, tmp_path: Path) -> None:
    coarse = ('model.dtype="bfloat16"', "method.epsilon=1e-5")
    words = said(folder, *coarse)
    assert words[-1].startswith("Warning: epsilon 1e-05 is too small for bfloat16: ")
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert said(tmp_path / "elsewhere", *coarse) == words
