"""Small fine-tuning runs for tests: the example task with few texts and a model that has hardly learned to read."""

import atexit
import tempfile
from functools import cache
from pathlib import Path

from farflung.apps.finetune.example import ExampleConfig, ExampleFiles, example_files

RUN = """
[run]
name = "tiny"
folder = "{folder}/run"

[model]
path = "{model}"

[data]
train = "{train}"
test = "{test}"

[objective]
template = "{{text}} :"
label_words = {{ good = "good", bad = "bad" }}

[training]
rounds = {rounds}
batch_size = 16
evaluation_rounds = 4
evaluation_examples = 64

[method]
name = "onebyte"
num_slots = 16
slots_per_lease_min = 4
reissue_seconds = 2.0
silence_seconds = 3.0
absence_seconds = 2.0
{method}

[[regions]]
name = "east"
workers = {workers}

[[regions]]
name = "west"
workers = {workers}

[[links]]
between = ["east", "west"]
bandwidth_mbit = 0.05
latency_ms = 150

[simulation]
slot_seconds = 0.02

[logging]
every_seconds = 0.25
tensorboard = false
"""
EXAMPLE = ExampleConfig(num_train=256, num_test=128, num_steps=40)


@cache
def example() -> ExampleFiles:
    """Model and data, made once for all tests of this process."""
    folder = tempfile.TemporaryDirectory(prefix="farflung-example-")
    atexit.register(folder.cleanup)
    return example_files(Path(folder.name), EXAMPLE)


def write_tuning(folder: Path, *, rounds: int = 12, workers: int = 1, method: str = "") -> Path:
    """A run file in `folder` with its model and data; the run's own folder is `folder/run`."""
    files = example()
    path = folder / "tiny.toml"
    content = RUN.format(
        folder=folder,
        model=files.model,
        train=files.data.train,
        test=files.data.test,
        rounds=rounds,
        workers=workers,
        method=method,
    )
    path.write_text(content, encoding="utf-8")
    return path
