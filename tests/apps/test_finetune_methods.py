"""`farflung finetune --method`: baselines leave what onebyte leaves, stop at Ctrl-C, and go on where they were."""

import json
import os
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from farflung.apps.finetune.accuracy import score
from farflung.apps.finetune.baseline import Baseline
from farflung.apps.finetune.job import Finetuning
from farflung.apps.finetune.materials import TuningMaterials
from farflung.apps.finetune.run_file import FINETUNE, FinetuneRun
from farflung.apps.finetune.watch import STATE_FILE, read_kept
from farflung.apps.runs.command import Wish, do_run
from farflung.apps.runs.history import read_history
from tests.apps.tunings import write_tuning
from tests.loopback.fleet import wait_until

SETTINGS = {
    "mezo": ("method.learning_rate=3e-4", "method.num_directions=2"),
    "adam": ("method.learning_rate=1e-3",),
    "fedavg-lora": ("method.learning_rate=1e-2", "method.local_steps=2", "method.num_clients=2", "method.rank=4"),
}
COMMON = {"method", "rounds", "loss_before", "loss", "accuracy_before", "accuracy", "bytes_sent", "gradient_bytes"} | {
    "forward_passes",
    "backward_passes",
    "num_steps",
    "seconds",
}


def overrides_of(method: str, *more: str) -> tuple[str, ...]:
    """Which name the method first, as the command's own option does."""
    return (f'method.name="{method}"', *SETTINGS[method], *more)


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("method", SETTINGS)
def test_every_method_leaves_a_model_and_a_summary_to_compare(method: str, tmp_path: Path) -> None:
    path = write_tuning(tmp_path, rounds=16)
    do_run(Finetuning(), Wish(path=path, overrides=overrides_of(method)))
    summary, folder = summary_of(tmp_path / "run"), tmp_path / "run"
    assert summary.keys() >= COMMON and summary["method"] == method and summary["rounds"] == 16
    assert summary["loss"] < summary["loss_before"] - 0.05
    assert (summary["bytes_sent"] > 0) == (method == "fedavg-lora")
    passes = {"mezo": (64, 0), "adam": (16, 16), "fedavg-lora": (64, 64)}[method]
    assert (summary["forward_passes"], summary["backward_passes"]) == passes
    materials = TuningMaterials.gather(FINETUNE.load(path))
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    found = score(model, materials.task.objective, materials.held_out)
    assert found.loss == pytest.approx(summary["loss"], abs=1e-5) and found.accuracy == summary["accuracy"]
    told = [point.values["round"] for point in read_history(folder / "log.jsonl").points]
    assert told[0] == 0 and told[-1] == 16, "how it was, and how it is"


def test_onebyte_tells_the_same_of_itself(tmp_path: Path) -> None:
    path = write_tuning(tmp_path, rounds=2)
    do_run(Finetuning(), Wish(path=path, is_simulated=True))
    summary = summary_of(tmp_path / "run")
    assert summary.keys() >= COMMON and summary["method"] == "onebyte"
    assert (summary["forward_passes"], summary["backward_passes"]) == (2 * 2 * 16, 0)


def sitting(method: str, tmp_path: Path, name: str, rounds: int) -> tuple[FinetuneRun, TuningMaterials, Path]:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    run = FINETUNE.load(write_tuning(tmp_path, rounds=rounds), overrides_of(method))
    return run, TuningMaterials.gather(run), folder


@pytest.mark.parametrize("method", SETTINGS)
def test_a_resumed_run_comes_to_the_same_weights(method: str, tmp_path: Path) -> None:
    run, materials, folder = sitting(method, tmp_path, "whole", 6)
    whole = Baseline(run).work(run, materials, folder, lambda _: None, lambda: False)
    run, materials, folder = sitting(method, tmp_path, "parts", 6)
    heard: list[float] = []
    first = Baseline(run)
    assert not first.prepare(folder, run, is_resumed=True), "nothing is there yet"
    stopped = first.work(
        run, materials, folder, lambda report: heard.append(report.values["round"]), lambda: 3 in heard
    )
    assert stopped is None and read_kept(folder / STATE_FILE).round_number == 3
    second = Baseline(run)
    assert second.prepare(folder, run, is_resumed=True)
    rest = second.work(run, TuningMaterials.gather(run), folder, lambda _: None, lambda: False)
    assert whole is not None and rest is not None and rest.before == whole.before
    assert rest.progress.num_bytes == whole.progress.num_bytes
    for (name, one), other in zip(whole.model.named_parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    more = replace(run, training=replace(run.training, rounds=8))
    third = Baseline(more)
    assert third.prepare(folder, more, is_resumed=True), "what came to its end can be given more rounds"
    longer = third.work(more, TuningMaterials.gather(more), folder, lambda _: None, lambda: False)
    assert longer is not None and longer.progress.round_number == 8


def test_an_ended_run_can_be_asked_for_its_result_again(tmp_path: Path) -> None:
    path = write_tuning(tmp_path, rounds=4)
    do_run(Finetuning(), Wish(path=path, overrides=overrides_of("adam")))
    before = summary_of(tmp_path / "run")
    do_run(Finetuning(), Wish(path=tmp_path / "run" / "run.toml", is_resumed=True))
    after = summary_of(tmp_path / "run")
    assert (after["loss"], after["rounds"]) == (before["loss"], 4)


def interrupt_after(folder: Path, round_number: int) -> threading.Thread:
    """Ctrl-C, as soon as the log tells of that round."""

    def is_there() -> bool:
        log = folder / "log.jsonl"
        points = read_history(log).points if log.exists() else []
        return any(point.values["round"] >= round_number for point in points)

    def interrupt() -> None:
        wait_until(is_there, f"round {round_number} is over", 120)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


def test_ctrl_c_keeps_what_is_done_and_the_run_goes_on_there(tmp_path: Path) -> None:
    path, folder = write_tuning(tmp_path, rounds=100_000), tmp_path / "run"
    overrides = overrides_of("adam", "training.evaluation_rounds=1")
    first_round = 1
    for is_resumed in (False, True):
        thread = interrupt_after(folder, first_round)
        with pytest.raises(KeyboardInterrupt):
            do_run(Finetuning(), Wish(path=path, overrides=overrides, is_resumed=is_resumed))
        thread.join()
        kept = read_kept(folder / STATE_FILE).round_number
        assert kept >= first_round
        first_round = kept + 1
    assert not (folder / "summary.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


REFUSED = [
    ("adam", (), True, "adam computes on this machine alone, so that there is nothing to simulate: leave out"),
    ("fedavg-lora", ("method.num_clients=257",), False, "256 examples are too few for 257 clients"),
    ("fedavg-lora", ('model.tensors=["norm"]',), False, "no matrix of a layer, which is what LoRA adapts"),
    ("adam", ("method.num_slots=4",), False, "unknown key 'num_slots' in [method]"),
    ("mezo", ("method.epsilon=0.0",), False, "epsilon must be above 0"),
    ("adam", ('objective={kind="reward", reward="builtins:len"}',), False, "a reward has no gradient"),
]


@pytest.mark.parametrize(("method", "more", "is_simulated", "sentence"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(
    method: str, more: tuple[str, ...], is_simulated: bool, sentence: str, tmp_path: Path
) -> None:
    path = write_tuning(tmp_path)
    wish = Wish(path=path, overrides=overrides_of(method, *more), is_simulated=is_simulated)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        do_run(Finetuning(), wish)
    assert not (tmp_path / "run").exists()


def test_what_was_kept_and_is_damaged_is_named(tmp_path: Path) -> None:
    path = write_tuning(tmp_path, rounds=2)
    do_run(Finetuning(), Wish(path=path, overrides=overrides_of("adam")))
    state = tmp_path / "run" / STATE_FILE
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged .*: remove it, and the run begins anew"):
        do_run(Finetuning(), Wish(path=tmp_path / "run" / "run.toml", is_resumed=True))


def test_a_first_try_without_a_file_has_settings_of_its_own() -> None:
    rates = [FINETUNE.load(None, (f'method.name="{name}"',)).method.learning_rate for name in ("adam", "mezo")]
    assert rates == [1e-3, 3e-4]
    onebyte = FINETUNE.load(None)
    assert onebyte.onebyte.is_exact and onebyte.training.rounds == 120
    assert not FINETUNE.load(None, ("method.is_exact=false",)).onebyte.is_exact
