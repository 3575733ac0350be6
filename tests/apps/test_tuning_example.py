"""The example: files that a user could have written, a model that knows the old labels, kept for the next time."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from farflung.apps.finetune import example
from farflung.apps.finetune.accuracy import score
from farflung.apps.finetune.example import ExampleConfig, ExampleFiles, example_files
from farflung.apps.finetune.labelled import read_task

CONFIG = ExampleConfig(num_train=256, num_test=256, num_steps=160)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ExampleFiles:
    torch.set_num_threads(1)
    return example_files(tmp_path_factory.mktemp("cache"), CONFIG)


def test_the_model_reads_texts_but_not_their_new_labels(files: ExampleFiles) -> None:
    model = AutoModelForCausalLM.from_pretrained(files.model)
    task = read_task(files.data, files.objective, AutoTokenizer.from_pretrained(files.model), model)
    assert task.test is not None and len(task.test) == 256 and len(task.train) == 256
    accuracy = score(model, task.objective, task.test).accuracy
    assert accuracy is not None and 0.4 < accuracy < 0.65
    # With the labels that it was pretrained on it is right.
    words, clusters = example._texts(256, torch.Generator().manual_seed(5))
    numbers = {word: number for number, word in enumerate(example._vocabulary())}
    prompts = torch.cat([words, torch.full((256, 1), numbers[example.LABEL_MARK])], 1)
    with torch.no_grad():
        scores = model(input_ids=prompts).logits[:, -1, [numbers[example.BAD], numbers[example.GOOD]]]
    assert (scores.argmax(1) == example._is_good(clusters)).double().mean() > 0.9


def test_it_is_made_once_and_each_seed_has_its_own(files: ExampleFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = ExampleConfig(num_train=8, num_test=8, num_steps=1, seed=1)
    folder = files.model.parent
    made = example_files(folder, quick)
    assert made.model != files.model and made.model.parent == folder
    written = {path.name: path.stat().st_mtime_ns for path in made.model.iterdir()}
    monkeypatch.setattr(example, "_write", lambda *_: pytest.fail("it is there already"))
    assert example_files(folder, quick) == made
    assert {path.name: path.stat().st_mtime_ns for path in made.model.iterdir()} == written
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_cache_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be kept in"):
        example_files(tmp_path / "file", ExampleConfig(num_train=1, num_test=1, num_steps=1))
