"""The demonstration: training and its cache; and that no interrupt leaves a process behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from farflung.apps.demo.train import CHARACTERS_MAX, TrainConfig, trained_model
from farflung.learn.corpus import standard_library
from tests.apps.processes import ROOT, wait_until

SMALL = {"vocabulary_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_blocks": 2, "num_heads": 2}


def test_training_learns_and_is_not_repeated(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = TrainConfig(seconds=3, num_key_value_heads=1, learning_rate=1e-2, **SMALL)
    console = Console(quiet=True)
    folder = trained_model(tmp_path, config, console)
    model = AutoModelForCausalLM.from_pretrained(folder)
    text = standard_library(CHARACTERS_MAX)[0][:2000]
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        loss = float(model(input_ids=ids, labels=ids).loss)
    assert loss < 6.0  # a guess among 512 tokens is 6.2, and a busy machine makes few steps in three seconds
    written_at = (folder / "model.safetensors").stat().st_mtime_ns
    assert trained_model(tmp_path, config, console) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written_at
    other = TrainConfig(seconds=1, num_key_value_heads=1, seed=1, **SMALL)
    assert trained_model(tmp_path, other, console) != folder


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs below share their model."""
    return tmp_path_factory.mktemp("demo")


def start_demo(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "farflung", "demo", "--folder", str(folder), "--train-seconds", "2"]
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=subprocess.STDOUT
        )


@pytest.mark.loopback
def test_the_demonstration_ends_with_the_same_words(demo_folder: Path, tmp_path: Path) -> None:
    demo = start_demo(demo_folder, tmp_path / "log")
    assert demo.wait(timeout=700) == 0, (tmp_path / "log").read_text()
    said = " ".join((tmp_path / "log").read_text().split())
    assert "kill -9 server B" in said
    assert "watch and chat, as long as this goes on: http://127.0.0.1:" in said
    assert "The same words as transformers.generate on one machine" in said


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("phase", "number"),
    [("model-", signal.SIGINT), ("server-A", signal.SIGINT), ("class LineReader", signal.SIGTERM)],
    ids=["before the processes", "while they start", "in mid-answer"],
)
def test_an_interrupt_leaves_no_process(demo_folder: Path, tmp_path: Path, phase: str, number: signal.Signals) -> None:
    log = tmp_path / "log"
    demo = start_demo(demo_folder, log)
    family = psutil.Process(demo.pid)
    seen: set[psutil.Process] = set()

    def has_reached() -> bool:
        children = family.children(recursive=True)
        seen.update(children)
        return phase in log.read_text() or (phase == "server-A" and len(children) > 0)

    wait_until(has_reached, seconds=400, what=phase)
    demo.send_signal(number)
    assert demo.wait(timeout=120) in (130, 143)
    wait_until(lambda: not any(child.is_running() for child in seen), seconds=60, what="all children are gone")
    if phase != "model-":
        assert seen
