"""`farflung align`: what its file may say, and a run in virtual time whose answers become better."""

import json
import shutil
from pathlib import Path
from typing import cast

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from farflung.apps.align.advice import print_advice
from farflung.apps.align.engine import AlignmentEngine
from farflung.apps.align.job import Alignment
from farflung.apps.align.materials import Materials
from farflung.apps.align.parts import run_identity
from farflung.apps.align.run_file import ALIGN
from farflung.apps.cli import app
from farflung.apps.runs.command import Wish, do_run
from farflung.apps.runs.group import Group
from farflung.apps.runs.history import read_history
from tests.apps.aligned import write_align_run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.loss=ppoo", "ppoo"),
        ("training.loss_settings={clip_hi=0.3}", "in \\[training.loss_settings\\]: did you mean 'clip_high'"),
        ("training.loss_settings={clip_high=-1}", "clip_high above 0"),
        ("training.loss_settings={clip_high='much'}", "clip_high"),
        ("sync.mode=later", "later"),
        ("sync.staleness_max=-1", "staleness_max"),
        ("sync.steps_per_version=5", "publish at least every 2 steps"),
        ("training.stepps=5", "did you mean 'steps'"),
        ("run.kind=pretrain", "farflung pretrain"),
        ("model.path=somewhere", "another kind"),
        ("environment.kind=function", "path of a causal language model"),
        ("model.adapter_rank=-1", "adapter_rank"),
        ("rollout.stages=-1", "stages must be 0"),
        ("training.steps_per_evaluation=-1", "steps_per_evaluation must be 0"),
        ("regions=[{name='a', ranks_per_worker=2}]", "add workers instead"),
        ("training.ranks=0", "ranks must be at least 1"),
        ("training.ranks=two", "training.ranks: expected whole number"),
        ("training.ranks=129", "ranks = 129 have only 128 answers to share"),
        ("training.parallelism=fsdp2", "did you mean 'fsdp'"),
    ],
)
def test_a_mistake_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ALIGN.load(None, [override])


@pytest.mark.parametrize(
    ("overrides", "is_simulated", "sentence"),
    [
        ([], True, "a simulation has no block servers"),
        (["sync.mode=colocated"], False, "a colocated run has no block servers"),
        (["regions=[{name='a'}, {name='b', is_remote=true}]"], False, "workers that are started here"),
    ],
)
def test_block_servers_stand_only_behind_workers_that_are_started_here(
    overrides: list[str], is_simulated: bool, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        ALIGN.load(None, ["rollout.stages=2", *overrides], is_simulated=is_simulated)


def test_only_a_trainer_may_be_several_processes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a colocated run is one process: leave out training\.ranks"):
        ALIGN.load(None, ["training.ranks=2", "sync.mode=colocated"])
    run = ALIGN.load(write_align_run(tmp_path, steps=2), ["training.ranks=2"])
    assert [seat.num_ranks for seat in Alignment().engine(run).seats(run)] == [2, 1, 1]
    assert ALIGN.load(tmp_path / "run.toml", ["training.ranks=2"], is_simulated=True).training.ranks == 1
    worker = Alignment().engine(run).seats(run)[1]
    with pytest.raises(ValueError, match="here-worker-0 is one process: leave out --ranks"):
        Alignment().gather_for(run, worker, cast(Group, object()), None)


@pytest.mark.parametrize(("arguments", "device"), [([], "auto"), (["--no-gpu"], "cpu")])
def test_the_same_file_runs_without_an_accelerator(arguments: list[str], device: str) -> None:
    shown = CliRunner().invoke(app, ["align", str(ROOT / "examples" / "align.toml"), "--show", *arguments])
    assert shown.exit_code == 0 and f'device = "{device}"' in shown.output


def test_a_loss_has_its_authors_settings_but_where_it_is_told_otherwise() -> None:
    run = ALIGN.load(None, ["training.loss=dapo", "training.loss_settings={clip_low=0.1}"])
    assert (run.learning.loss.clip_low, run.learning.loss.clip_high, run.learning.loss.is_scaled) == (0.1, 0.28, True)


def test_the_trainer_may_be_alone_where_it_is() -> None:
    regions = "regions=[{name='trainer', workers=0}, {name='far', workers=2}]"
    run = ALIGN.load(None, [regions])
    seats = AlignmentEngine(run).seats(run)
    assert [seat.name for seat in seats] == ["trainer-trainer", "far-worker-0", "far-worker-1"]
    for overrides in (["regions=[{name='a', workers=0}]"], [regions, "sync.mode=colocated"]):
        with pytest.raises(ValueError, match="needs at least one worker"):
            ALIGN.load(None, overrides)
    with pytest.raises(ValueError, match="cannot have -1 workers"):
        ALIGN.load(None, ["regions=[{name='a', workers=-1}]"])


def test_a_link_longer_than_real_connections_take_is_refused_but_simulated() -> None:
    link = "links=[{between=['a', 'b'], bandwidth_mbit=20, latency_ms=5000}]"
    overrides = ["regions=[{name='a'}, {name='b'}]", link, "run.is_shaped=true"]
    with pytest.raises(ValueError, match=r"5000 ms one way.*at most 2000: try longer ones with --simulate"):
        ALIGN.load(None, overrides)
    assert ALIGN.load(None, overrides[:2], is_simulated=True).links[0].latency_ms == 5000


def test_the_example_and_what_is_shown_of_a_run_are_runs() -> None:
    run = ALIGN.load(ROOT / "examples" / "align.toml", is_simulated=True)
    assert ALIGN.read(ALIGN.tables(run)) == run
    assert run.conversation.staleness_max == 1 and ALIGN.load(None, ["sync.mode=sequential"]).conversation.num_steps


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


def run_simulated(path: Path, *overrides: str) -> str:
    """Run it to its end; its log."""
    do_run(Alignment(), Wish(path=path, overrides=overrides, is_simulated=True))
    return (path.parent / "run" / "log.jsonl").read_text()


def test_versions_are_evaluated_as_they_come(tmp_path: Path) -> None:
    path = write_align_run(tmp_path, steps=4)
    run_simulated(path, "training.steps_per_evaluation=2")
    points = [one.values for one in read_history(tmp_path / "run" / "log.jsonl").points if one.seat == "here-trainer"]
    assert {one["evaluated_version"] for one in points if "evaluated_version" in one} == {2.0, 4.0}
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert points[-1]["evaluated_reward"] == found["reward"], "of the last version, on the same prompts"


def test_rewards_that_do_not_differ_are_told_and_the_run_goes_on(tmp_path: Path) -> None:
    path = write_align_run(tmp_path, steps=2)
    text = (tmp_path / "even.py").read_text()
    (tmp_path / "even.py").write_text(text.replace("return sum(", "return 1.0 or sum("))
    log = run_simulated(path)
    assert log.count("alarm: no group of this step has answers of different worth") == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["counters"]["here-trainer"]["steps"] == 2


def test_a_reward_that_always_raises_stops_the_run_in_a_sentence(tmp_path: Path) -> None:
    path = write_align_run(tmp_path, steps=2)
    text = (tmp_path / "even.py").read_text()
    (tmp_path / "even.py").write_text(text.replace("return sum(", "return 1 / 0 or sum("))
    with pytest.raises(ValueError, match=r"even.py:reward raised ZeroDivisionError.*correct the reward function"):
        run_simulated(path)


def test_a_worker_with_another_tokenizer_is_of_another_run(tmp_path: Path) -> None:
    path = write_align_run(tmp_path, steps=2)
    ours = Materials.gather(ALIGN.load(path))
    shutil.copytree(tmp_path / "small", tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    file.write_text(file.read_text().replace('"0": 0', '"0": 1', 1).replace('"1": 1', '"1": 0', 1))
    theirs = Materials.gather(ALIGN.load(path, [f'model.path="{tmp_path}/other"']))
    assert ours.tokenizer.encode("01") == [0, 1] and theirs.tokenizer.encode("01") == [1, 0]
    assert run_identity(ours) != run_identity(theirs)


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
