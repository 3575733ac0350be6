"""A small alignment run for tests: a model with random weights that is to say even digits, whatever it is asked."""

from pathlib import Path

from farflung.apps.align.addition import END_TOKEN, addition_tokenizer
from tests.policies import small_model

FUNCTIONS = """
def problem(index):
    return {"prompt": f"{index % 100:02}+"}


def reward(answer, problem):
    return sum(letter in "02468" for letter in answer) / 4
"""

RUN = """
[run]
name = "even"
folder = "{folder}/run"

[model]
path = "{folder}/small"
device = "cpu"

[environment]
kind = "function"
problems = "{folder}/even.py:problem"
reward = "{folder}/even.py:reward"

[training]
steps = {steps}
prompts_per_step = 16
answers_per_prompt = 8
tokens_per_answer = 4
learning_rate = 3e-3
evaluation_prompts = 16

[logging]
every_seconds = 0.5
tensorboard = false
"""


def write_align_run(folder: Path, steps: int) -> Path:
    """Model, functions and run file; where the latter lies."""
    model = small_model(initializer_range=0.02)
    model.generation_config.eos_token_id = END_TOKEN
    model.save_pretrained(folder / "small")
    addition_tokenizer().save_pretrained(folder / "small")
    (folder / "even.py").write_text(FUNCTIONS)
    path = folder / "run.toml"
    path.write_text(RUN.format(folder=folder, steps=steps))
    return path
