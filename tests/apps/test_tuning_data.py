"""Labelled texts: what is read and made of them, and the sentence for each way a file can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from farflung.apps.finetune.accuracy import score
from farflung.apps.finetune.examples import read_examples
from farflung.apps.finetune.labelled import TuningTask, read_task
from farflung.apps.finetune.rows import Batches, Rows
from farflung.apps.finetune.settings import DataSettings, ObjectiveSettings
from farflung.systems.onebyte.objective import NextTokenLoss
from tests.apps.tiny import save_tiny_model

OBJECTIVE = ObjectiveSettings(template="{text}\n", label_words={"0": "a", "1": "b"})


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), num_blocks=2)


@pytest.fixture
def tiny(model_folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(model_folder), AutoModelForCausalLM.from_pretrained(model_folder)


def written(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def test_columns_by_name_by_number_and_in_json_are_the_same_examples(tmp_path: Path) -> None:
    rows = [('well "made"', "1"), ("dull", "0")]
    named = written(tmp_path, "a.tsv", "label\ttext\n" + "".join(f"{label}\t{text}\n" for text, label in rows))
    bare = written(tmp_path, "b.tsv", "".join(f"{text}\t{label}\n" for text, label in rows))
    lines = [json.dumps({"text": text, "label": int(label)}) for text, label in rows]
    as_json = written(tmp_path, "c.jsonl", "\n".join([lines[0], "", lines[1]]))
    for path, text, label in ((named, "text", "label"), (bare, 0, 1), (as_json, "text", "label")):
        found = read_examples(Path(path), text, label)
        assert [(example.text, example.label) for example in found] == rows
    assert [example.label for example in read_examples(Path(bare), 0, None)] == ["", ""]


@pytest.mark.parametrize(
    ("name", "content", "data", "sentence"),
    [
        ("a.tsv", "text\tlabel\n", {}, "has no examples"),
        ("a.jsonl", "\n", {}, "has no examples"),
        ("a.tsv", "review\tlabel\nfine\t1\n", {}, r"a\.tsv:2 has no column 'text' \(there are: review, label\)"),
        ("a.tsv", "fine\t1\n", {"text": 0, "label": 2}, r"a\.tsv:1 has no column 2"),
        ("a.tsv", "text\tlabel\nfine\n", {}, r"a\.tsv:2 has no column 'label'"),
        ("a.tsv", "text\tlabel\nfine\t1\textra\n", {}, "3 columns and the first line names 2"),
        ("a.tsv", "text\tlabel\nfine\t1\nodd\t7\n", {}, r"a\.tsv:3 has the label '7'.*known are: 0, 1"),
        ("a.tsv", "text\tlabel\n \t1\n", {}, "empty text"),
        ("a.jsonl", '{"text": "fine"}\n', {}, r"a\.jsonl:1 has no column 'label' \(there are: text\)"),
        ("a.jsonl", "fine 1\n", {}, r"a\.jsonl:1 is no JSON"),
        ("a.jsonl", "[1]\n", {}, r"a\.jsonl:1 is not an object"),
        ("a.tsv", "text\tlabel\nfine\t1\n", {"label": None}, "needs data.label"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(
    name: str, content: str, data: dict[str, Any], sentence: str, tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    settings = DataSettings(train=written(tmp_path, name, content), **data)
    with pytest.raises(ValueError, match=sentence):
        read_task(settings, OBJECTIVE, *tiny)


def test_a_file_that_is_not_there_or_not_text_is_refused(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*none\.tsv"):
        read_task(DataSettings(train=str(tmp_path / "none.tsv")), OBJECTIVE, *tiny)
    (tmp_path / "b.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as UTF-8"):
        read_task(DataSettings(train=str(tmp_path / "b.tsv")), OBJECTIVE, *tiny)


def test_label_words_and_templates_that_cannot_be_are_refused(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    data = DataSettings(train=written(tmp_path, "a.tsv", "text\tlabel\nfine\t1\ndull\t0\n"))
    several = ObjectiveSettings(template="{text}\n", label_words={"0": "terrible", "1": "b"})
    with pytest.raises(ValueError, match=r"'terrible' is [0-9]+ tokens for this tokenizer"):
        read_task(data, several, *tiny)
    with pytest.raises(ValueError, match="two different ones"):
        read_task(data, ObjectiveSettings(template="{text}\n", label_words={"0": "a", "1": "a"}), *tiny)
    with pytest.raises(ValueError, match=r"must have \{text\} once"):
        ObjectiveSettings(template="label:")
    with pytest.raises(ValueError, match="goes with"):
        ObjectiveSettings(kind="reward")
    with pytest.raises(ValueError, match="'nowhere:good' cannot be loaded"):
        read_task(data, ObjectiveSettings(kind="reward", reward="nowhere:good"), *tiny)


def task_of(tiny: tuple[Any, Any], folder: Path, objective: ObjectiveSettings = OBJECTIVE) -> TuningTask:
    content = "text\tlabel\nreturn len\t1\nclass\t0\ndef main(arguments)\t1\npass\t0\n"
    file = written(folder, "data.tsv", content)
    return read_task(DataSettings(train=file, test=file), objective, *tiny)


def test_accuracy_and_loss_are_those_of_each_prompt_alone(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    tokenizer, model = tiny
    task = task_of(tiny, tmp_path)
    assert task.test is not None
    right, losses = 0, []
    words = [tokenizer.encode("a")[0], tokenizer.encode("b")[0]]
    with torch.no_grad():
        for text, label in (("return len", 1), ("class", 0), ("def main(arguments)", 1), ("pass", 0)):
            scores = model(input_ids=torch.tensor([tokenizer.encode(text + "\n")])).logits[0, -1, words]
            right += int(scores.argmax()) == label
            losses.append(-float(scores.log_softmax(0)[label]))
    for batch_size in (1, 3, 64):
        found = score(model, task.objective, task.test, batch_size)
        assert found.accuracy == right / 4 and found.num_examples == 4
        assert found.loss == pytest.approx(sum(losses) / 4, abs=1e-5)


def test_a_model_with_learned_positions_counts_them_without_the_padding(model_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, initializer_range=0.3, bos_token_id=None)
    ).eval()
    task = task_of((tokenizer, model), tmp_path)
    assert task.test is not None
    alone = score(model, task.objective, task.test, 1).loss
    assert score(model, task.objective, task.test, 4).loss == pytest.approx(alone, abs=1e-5)


def test_of_texts_only_the_answer_is_learned(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    tokenizer, model = tiny
    task = task_of(tiny, tmp_path, ObjectiveSettings(kind="text", template="{text}\n"))
    assert isinstance(task.objective, NextTokenLoss) and task.test is not None
    batch = task.train.batch([0])
    prompt, answer = tokenizer.encode("return len\n"), [*tokenizer.encode("1"), tokenizer.eos_token_id]
    assert batch["input_ids"].tolist() == [prompt + answer]
    assert batch["labels"].tolist() == [[-100] * len(prompt) + answer]
    found = score(model, task.objective, task.test)
    with torch.no_grad():
        logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[0]
        loss = float(task.objective(model, batch))
    expected = -logits[:-1].log_softmax(-1)[range(len(prompt) - 1, len(prompt) + 1), answer].mean()
    assert loss == pytest.approx(float(expected), abs=1e-5)
    assert found.accuracy is not None and 0 <= found.accuracy <= 1
    assert score(model, task.objective, task.test, 1).loss == pytest.approx(found.loss, abs=1e-5)


def test_without_labels_the_text_itself_is_learned(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    data = DataSettings(train=written(tmp_path, "a.tsv", "return len\n"), text=0, label=None)
    objective = ObjectiveSettings(kind="text", length_max=4)
    whole = [*tiny[0].encode("return len"), tiny[0].eos_token_id]
    task = read_task(data, objective, *tiny)
    assert task.test is None and task.train.batch([0])["labels"].tolist() == [whole[-4:]]


def test_a_reward_values_prompt_answer_and_label(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "valued.py").write_text(
        "def good(prompt, answer, label):\n    return len(prompt) + 100 * int(label) + 0 * len(answer)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    objective = ObjectiveSettings(kind="reward", reward="valued:good", template="{text}\n", answer_tokens=2)
    task = task_of(tiny, tmp_path, objective)
    with torch.no_grad():
        values = task.objective(tiny[1], task.train.batch([0, 1]))
    assert values.tolist() == [-(len("return len\n") + 100.0), -float(len("class\n"))]


def test_batches_go_through_all_rows_once_an_epoch_in_an_order_of_the_seed() -> None:
    rows = Rows(tuple((number,) for number in range(10)), (1,) * 10, tuple(range(10)), has_positions=False)
    batches, others = Batches(rows, 4, "one"), Batches(rows, 4, "two")
    drawn = [number for round_number in range(5) for number in batches(round_number)["answers"].tolist()]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:] and drawn[:10] != list(range(10))
    assert batches(3)["answers"].tolist() == drawn[12:16]
    assert drawn != [number for round_number in range(5) for number in others(round_number)["answers"].tolist()]


def test_shares_are_all_the_rows() -> None:
    rows = Rows(tuple((number,) for number in range(10)), tuple(range(10)), tuple(range(10)), has_positions=False)
    shares = [rows.share(number, 3) for number in range(3)]
    assert [share.tokens for share in shares] == [((0,), (3,), (6,), (9,)), ((1,), (4,), (7,)), ((2,), (5,), (8,))]
    assert shares[1].answers == shares[1].num_given == (1, 4, 7)
