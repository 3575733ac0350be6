"""`farflung journal verify --remeasure`: on the run's model and data honest entries hold, turned signs are named."""

from io import BytesIO
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from farflung.apps.cli import app
from farflung.apps.finetune.materials import measured_data
from farflung.apps.finetune.run_file import FINETUNE
from farflung.systems.onebyte.code import SIGN_BIT
from farflung.systems.onebyte.header import schedule_of
from farflung.systems.onebyte.journal import JournalWriter
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.records import Part, Participant
from farflung.systems.onebyte.steps import step_of
from tests.onebyte_journals import SEQUENCER, header_for, identity_of, tiny_model

NUM_SLOTS, NUM_ROUNDS = 8, 4
RUN = """
[model]
path = "{folder}/base"
[data]
train = "{folder}/train.tsv"
[objective]
template = "{{text}} w2"
label_words = {{ good = "w3", bad = "w4" }}
[training]
batch_size = 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base model with a tokenizer, examples, a run file, and the journals of an honest run and of one with a liar."""
    model = tiny_model()
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(97)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0")
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    examples = [f"w{5 + number} w{20 + 3 * number}\t{'good' if number % 2 else 'bad'}" for number in range(12)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *examples, ""]))
    (tmp_path / "run.toml").write_text(RUN.format(folder=tmp_path))
    objective, batch_of = measured_data(FINETUNE.load(tmp_path / "run.toml"), tokenizer, model)
    schedule = schedule_of(0.02, num_slots=NUM_SLOTS, exponent=24)
    header = header_for(model, num_slots=NUM_SLOTS, epsilon=2e-3, exponent=24, schedule=schedule)
    for name, mask in (("honest", 0), ("lies", SIGN_BIT)):
        learner = ModelLearner(header, tiny_model(), objective, batch_of)
        file = BytesIO()
        writer = JournalWriter(file, header)
        for number in (0, 1):
            writer.add(Participant(identity_of(number).public_key, f"node-{number}"))
        for number in range(NUM_ROUNDS):
            codes = learner.measure(number, 0, NUM_SLOTS)
            half = NUM_SLOTS // 2
            second = bytes(code ^ mask for code in codes[half:])
            record = writer.add_round([Part(0, number, 0, codes[:half]), Part(1, number, half, second)])
            learner.add([step_of(header, record, part) for part in record.parts])
        for number in (0, 1):
            writer.seal(number, identity_of(number))
        writer.close(SEQUENCER)
        (tmp_path / f"{name}.flj").write_bytes(file.getvalue())
    return tmp_path


def verify(folder: Path, name: str, *options: object) -> str:
    """What the command prints; its mistake, if it makes one."""
    base = str(folder / "base")
    done = CliRunner().invoke(app, ["journal", "verify", str(folder / name), "--base", base, *map(str, options)])
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


def test_honest_entries_hold_and_turned_signs_are_named(folder: Path) -> None:
    said = verify(folder, "honest.flj", "--remeasure", 1.0, "--data", folder / "run.toml")
    assert said.count(" 16 ") >= 4 and "is right and is about this model" in said
    with pytest.raises(
        ValueError, match=r"other signs: node-1 \d+ of \d+\. Take them out with farflung journal revoke"
    ):
        verify(folder, "lies.flj", "--remeasure", 1.0, "--data", folder / "run.toml")


def test_mistakes_end_in_a_sentence(folder: Path) -> None:
    with pytest.raises(ValueError, match="needs --base"):
        verify(folder, "honest.flj", "--remeasure", 0.5)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        verify(folder, "honest.flj", "--remeasure", 1.5, "--data", folder / "run.toml")
    with pytest.raises(ValueError, match=r"nowhere\.toml"):
        verify(folder, "honest.flj", "--remeasure", 0.5, "--data", folder / "nowhere.toml")
