"""`farflung align`: what its file may say, and a run in virtual time whose answers become better."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from farflung.apps.align.advice import print_advice
from farflung.apps.align.job import Alignment
from farflung.apps.align.run_file import load_run_file, run_from, tables_of
from farflung.apps.runs.command import Wish, do_run
from farflung.apps.runs.history import read_history
from tests.apps.aligned import write_align_run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.loss=ppoo", "ppoo"),
        ("sync.mode=later", "later"),
        ("sync.staleness_max=-1", "staleness_max"),
        ("sync.steps_per_version=5", "publish at least every 2 steps"),
        ("training.stepps=5", "did you mean 'steps'"),
        ("run.kind=pretrain", "farflung pretrain"),
        ("model.path=somewhere", "another kind"),
        ("environment.kind=function", "path of a causal language model"),
        ("model.adapter_rank=-1", "adapter_rank"),
        ("regions=[{name='a', ranks_per_worker=2}]", "add workers instead"),
    ],
)
def test_a_mistake_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_run_file(None, [override])


def test_a_link_longer_than_real_connections_take_is_refused_but_simulated() -> None:
    link = "links=[{between=['a', 'b'], bandwidth_mbit=20, latency_ms=5000}]"
    overrides = ["regions=[{name='a'}, {name='b'}]", link, "run.is_shaped=true"]
    with pytest.raises(ValueError, match=r"5000 ms one way.*at most 2000: try longer ones with --simulate"):
        load_run_file(None, overrides)
    assert load_run_file(None, overrides[:2], is_simulated=True).links[0].latency_ms == 5000


def test_the_example_and_what_is_shown_of_a_run_are_runs() -> None:
    run = load_run_file(ROOT / "examples" / "align.toml", is_simulated=True)
    assert run_from(tables_of(run)) == run
    assert run.conversation.staleness_max == 1 and load_run_file(None, ["sync.mode=sequential"]).conversation.num_steps


def test_answers_become_better_and_equal_those_of_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_align_run(tmp_path, steps=8)
    found: dict[str, dict[str, float]] = {}
    for mode in ("async", "sequential", "colocated"):
        folder = tmp_path / mode
        overrides = (f"sync.mode={mode}", f'run.folder="{folder}"', "sync.audit_share=0.1")
        do_run(Alignment(), Wish(path=path, overrides=overrides, is_simulated=True))
        found[mode] = json.loads((folder / "summary.json").read_text())
        assert found[mode]["reward"] > found[mode]["reward_before"] + 0.15
    assert found["sequential"]["reward"] == found["colocated"]["reward"]
    trainer = read_history(tmp_path / "async" / "log.jsonl").latest["here-trainer"]
    assert trainer.values["step"] == 8 and trainer.staleness is not None and 0 < trainer.staleness <= 1
    capsys.readouterr()
    print_advice(tmp_path / "sequential" / "run.toml")
    assert "set sync.staleness_max = 1: expected +" in capsys.readouterr().out


# What peft says about transposed layers changes nothing, and it asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:.is_gradient_checkpointing")
def test_an_adapter_is_all_that_is_trained_and_sent(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    path = write_align_run(tmp_path, steps=4)
    overrides = ("model.adapter_rank=2", "sync.audit_share=0.2")
    do_run(Alignment(), Wish(path=path, overrides=overrides, is_simulated=True))
    trainer = json.loads((tmp_path / "run" / "summary.json").read_text())["counters"]["here-trainer"]
    assert trainer["steps"] == 4 and trainer["banned"] == 0
    assert trainer["weights_bytes"] < 4 * 2 * 20_000, "two workers got four versions of an adapter, not of the model"
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
