"""Tiny pretraining runs for tests: a text file, a byte-level tokenizer, a model of a few thousand parameters."""

from pathlib import Path

from farflung.learn.corpus import standard_library

RUN = """
[run]
name = "tiny"
folder = "{folder}/run"

[model]
hidden_size = 24
intermediate_size = 48
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 64

[data]
source = "{folder}/text.txt"
tokenizer = "bytes"

[training]
sequence_length = 32
batch_size = 4
tokens = {tokens}
num_validation_sequences = 16
optimizer = {{ learning_rate = 0.01 }}

[algorithm]
{algorithm}

[[regions]]
name = "east"
workers = 2

[[regions]]
name = "west"
workers = [{{ speed = 1.0 }}, {{ speed = 0.5 }}]

[[links]]
between = ["east", "west"]
bandwidth_mbit = 100
latency_ms = 20

[simulation]
step_seconds = 0.05

[logging]
every_seconds = 0.5
tensorboard = false
"""
HALOS = """
name = "halos"
num_local_steps = 4
updates_per_push = 4
local_learning_rate = 0.4
local_momentum = 0.5
local_delay = 2
global_learning_rate = 0.7
global_momentum = 0.3
global_delay = 1
merge_weight = 0.5
"""
ONE_SERVER = 'name = "async_local_sgd"\nnum_local_steps = 4\nlocal_learning_rate = 0.2\nlocal_delay = 2'


def write_run(folder: Path, *, algorithm: str = HALOS, tokens: int = 20_000) -> Path:
    """A run file in `folder` with its text; the run's own folder is `folder/run`."""
    (folder / "text.txt").write_text("\n".join(standard_library(60_000))[:60_000], encoding="utf-8")
    path = folder / "tiny.toml"
    path.write_text(RUN.format(folder=folder, algorithm=algorithm, tokens=tokens), encoding="utf-8")
    return path
