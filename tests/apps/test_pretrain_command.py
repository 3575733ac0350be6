"""Pretraining from a run file on virtual time: every algorithm learns, the result is a model, mistakes cost nothing."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from farflung.apps.pretrain.job import Pretraining
from farflung.apps.runs.command import Wish, do_run
from farflung.apps.runs.history import read_history
from farflung.apps.runs.logs import JsonLines
from tests.apps.runs import HALOS, write_run
from tests.swarms import SimulatedSwarm, SmallModel

LEARNT_LOSS = 3.6
"""A model that has learnt nothing has ln 257 = 5.55."""

ALGORITHMS = {
    "halos": HALOS,
    "async_local_sgd": """name = "async_local_sgd"
        num_local_steps = 4
        local_learning_rate = 0.3
        local_momentum = 0.5
        local_delay = 2""",
    "ddp": 'name = "ddp"',
    "local_adam": 'name = "local_adam"\nparameters_every = 4',
    "diloco": 'name = "diloco"\nparameters_every = 4',
    "diloco_dynamic": 'name = "diloco_dynamic"\nparameters_every = 4',
    "desloc": 'name = "desloc"\nparameters_every = 4\ncodec = "int4"',
    "farflung": 'name = "farflung"',
}


@pytest.fixture(autouse=True)
def one_thread_and_one_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("FARFLUNG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def pretrain(wish: Wish) -> None:
    do_run(Pretraining(), wish)


def simulate(path: Path, *overrides: str) -> dict[str, Any]:
    """Run it on virtual time; its summary."""
    pretrain(Wish(path=path, overrides=overrides, is_simulated=True))
    return json.loads((path.parent / "run" / "summary.json").read_text())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_learns(name: str, tmp_path: Path) -> None:
    path = write_run(tmp_path, algorithm=ALGORITHMS[name], tokens=30_000)
    summary = simulate(path)
    assert summary["validation_loss"] < LEARNT_LOSS
    assert summary["num_tokens"] >= 0.8 * 30_000
    crossed = {(link["from"], link["to"]): link["bytes"] for link in summary["link_bytes"]}
    assert crossed["east", "west"] > 0 and crossed["west", "east"] > 0


def test_the_result_is_a_model_with_its_tokenizer_a_plot_and_a_log(tmp_path: Path) -> None:
    simulate(write_run(tmp_path))
    folder = tmp_path / "run"
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompt = tokenizer("def ", return_tensors="pt")["input_ids"]
    words = model.generate(prompt, max_new_tokens=8, do_sample=False)
    assert words.shape[1] > prompt.shape[1] and isinstance(tokenizer.decode(words[0]), str)
    picture = (folder / "plot.svg").read_text()
    assert picture.count("<polyline") == 2 and "east → west" in picture
    history = read_history(folder / "log.jsonl")
    losses = history.losses("east")
    assert losses[0][1] > losses[-1][1] and losses[0][0] < losses[-1][0]
    assert history.num_tokens() == json.loads((folder / "summary.json").read_text())["num_tokens"]


def test_a_swarm_serves_what_a_run_has_trained(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    pretrain(Wish(path=path, overrides=("model.num_hidden_layers=2",), is_simulated=True))
    small = SmallModel.open(tmp_path / "run" / "model")
    prompt = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")("def ", return_tensors="pt")["input_ids"]
    with SimulatedSwarm(small, {"a": (0, 1), "b": (1, 2)}) as swarm:
        served = swarm.model.generate(prompt, max_new_tokens=16, do_sample=False)
    assert torch.equal(served, small.whole.generate(prompt, max_new_tokens=16, do_sample=False))
    assert served.shape[1] == prompt.shape[1] + 16 or served[0, -1] == small.whole.generation_config.eos_token_id


def test_one_seed_is_one_run(tmp_path: Path) -> None:
    path = write_run(tmp_path, tokens=10_000)
    summaries: list[dict[str, Any]] = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        do_run(
            Pretraining(),
            Wish(path=path, overrides=(f"run.folder={tmp_path}/{name}", f"run.seed={seed}"), is_simulated=True),
        )
        summaries.append(json.loads((tmp_path / name / "summary.json").read_text()))
    assert summaries[0] == summaries[1] and summaries[0] != summaries[2]


def test_a_worker_of_half_the_speed_does_half_the_work(tmp_path: Path) -> None:
    simulate(write_run(tmp_path))
    steps = {point.seat: point.num_steps for point in read_history(tmp_path / "run" / "log.jsonl").newest()}
    assert 0.3 < steps["west-worker-3"] / steps["west-worker-2"] < 0.8


REFUSED = [
    ("data.source=nowhere.txt", "nowhere.txt"),
    ("training.sequence_length=128", "the model has positions for 64"),
    ("training.num_validation_sequences=100000", "too few to hold out"),
    ("model.vocab_size=100", "the tokenizer has 257 tokens and the model's vocabulary 100"),
    ("logging.wandb=true", "pip install wandb"),
    ("data.tokenizer=model", "needs model.path"),
]


@pytest.mark.parametrize(("override", "sentence"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(override: str, sentence: str, tmp_path: Path) -> None:
    path = write_run(tmp_path)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        pretrain(Wish(path=path, overrides=(override,), is_simulated=True))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    path = write_run(tmp_path, tokens=2_000)
    simulate(path)
    before = {file: file.read_bytes() for file in sorted((tmp_path / "run").rglob("*")) if file.is_file()}
    with pytest.raises(ValueError, match="already holds a run: give --resume"):
        simulate(path)
    with pytest.raises(ValueError, match=r"begun with another \[model\] \(hidden_size\)"):
        pretrain(Wish(path=path, overrides=("model.hidden_size=32",), is_resumed=True))
    with pytest.raises(ValueError, match="there is no run in"):
        pretrain(Wish(path=path, overrides=(f"run.folder={tmp_path}/else",), is_resumed=True))
    with pytest.raises(ValueError, match="a simulation is replayed, not resumed"):
        pretrain(Wish(path=path, is_simulated=True, is_resumed=True))
    after = {file: file.read_bytes() for file in sorted((tmp_path / "run").rglob("*")) if file.is_file()}
    assert after == before


def test_a_disk_that_is_full_in_the_middle_ends_the_run_in_a_sentence(tmp_path: Path) -> None:
    path = write_run(tmp_path, tokens=10_000)
    do_run(
        Pretraining(),
        Wish(path=path, overrides=(f"run.folder={tmp_path}/first", "training.tokens=2000"), is_simulated=True),
    )
    command = [sys.executable, "-m", "farflung", "pretrain", str(path), "--simulate"]
    limit = (4096, 4096)  # enough for the run file, too little for the log
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, told
    assert "run takes no more (" in told and "make room there, then begin it again" in told


def test_a_line_of_the_log_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "bytes", "seconds": 1.0, "links": []}\n{"kind": "byt')
    log = JsonLines(path)
    log.write({"kind": "decision"})
    log.close()
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == ["bytes", "decision"]


def test_the_default_run_leaves_the_one_before_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    tiny = ("training.tokens=2048", "data.source=text.txt", "data.tokenizer=bytes", "model.hidden_size=16")
    for _ in range(2):
        pretrain(Wish(overrides=tiny, is_simulated=True))
    assert (tmp_path / "pretraining" / "model").is_dir() and (tmp_path / "pretraining-2" / "model").is_dir()


@pytest.mark.parametrize(
    ("algorithm", "sentences"),
    [
        (
            'name = "desloc"\nparameters_every = 8\ncodec = "auto"\nperiods = "auto"',
            ["east-coordinator: raw from ", "east-coordinator: parameters every "],
        ),
        (f'{HALOS}\ncodec_up_local = "auto"\ncodec_up_global = "auto"', ["west-local-server: updates go up in raw"]),
    ],
)
def test_what_was_chosen_by_measurements_is_in_the_log(algorithm: str, sentences: list[str], tmp_path: Path) -> None:
    summary = simulate(write_run(tmp_path, algorithm=algorithm, tokens=30_000))
    assert summary["validation_loss"] < LEARNT_LOSS
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [f"{one['seat']}: {one['decision']}" for one in entries if one["kind"] == "decision"]
    for sentence in sentences:
        assert any(one.startswith(sentence) for one in told), told
