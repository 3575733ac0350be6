"""Run files: read strictly, shown in full, and every mistake refused in a sentence that says the way out."""

import re
import tomllib
from pathlib import Path

import pytest

from farflung.apps.pretrain.algorithms import NAMES
from farflung.apps.pretrain.run_file import PRETRAIN
from farflung.apps.runs.toml_text import toml_text
from farflung.systems.desync.config import DesyncConfig
from tests.apps.runs import write_run

MISTAKES: list[tuple[str, str]] = [
    ("trainin.tokens=3", "unknown key 'trainin' at the top of the run file: did you mean 'training'?"),
    ("optimizer.learning_rate=1e-4", "unknown key 'optimizer' at the top of the run file: did you mean 'training.opt"),
    ("training.batchsize=3", "unknown key 'batchsize' in [training]: did you mean 'batch_size'?"),
    ("training.optimizer.learning_rte=1", "in [training.optimizer]: did you mean 'learning_rate'?"),
    ("training.optimizer.name=adamm", "unknown value 'adamm' in [training.optimizer.name]: did you mean 'adam"),
    ("training.batch_size=many", "training.batch_size: expected whole number, got text"),
    ("training.tokens=3", "training.tokens = 3 is less than one step, which takes 128 tokens"),
    ("training.schedule.warmup=2", "warmup is a share between 0 and 1"),
    ("model.hiden_size=3", "unknown key 'hiden_size' in [model]: did you mean 'hidden_size'?"),
    ("model.model_type=lama", "did you mean 'llama'?"),
    ("model.path=somewhere", "[model] has path, which brings its configuration: take"),
    ("algorithm.name=halo", "unknown algorithm 'halo' in [algorithm.name]: did you mean 'halos'?"),
    ("algorithm.merge_wait=1.0", "unknown key 'merge_wait' in [algorithm]: did you mean 'merge_weight'?"),
    ("algorithm.merge_weight=3.0", "merge_weight is 3.0"),
    ("algorithm.codec_up_local=int3", "codec_up_local is 'int3'; choose one of"),
    ("regions=[]", "a run needs at least one region"),
    ("regions=[{name='a', workers=0}]", "region 'a' needs at least one worker"),
    ("regions=[{name='east'}, {name='east'}]", "there are two regions 'east'"),
    ("regions=[{name='east', workers=[{spead=1}]}]", "in [regions[0].workers[0]]: did you mean 'speed'?"),
    ("links=[{between=['east', 'wst'], bandwidth_mbit=1}]", "unknown region 'wst' in [links[0]]: did you mean 'west'?"),
    ("links=[{between=['east', 'east'], bandwidth_mbit=1}]", "a link is between two regions"),
    ("links=[{between=['east', 'west']}]", "links[0] lacks the key 'bandwidth_mbit'"),
    ("nonsense", "--set takes key=value"),
]


@pytest.mark.parametrize(("override", "sentence"), MISTAKES)
def test_mistakes_are_refused_in_a_sentence(override: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        PRETRAIN.load(write_run(tmp_path), [override])
    assert "\n" not in str(refused.value)


def test_what_is_shown_is_the_same_run(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    run = PRETRAIN.load(path)
    for name in NAMES:
        run = PRETRAIN.load(path, [f"algorithm={{name='{name}'}}"])
        assert PRETRAIN.read(tomllib.loads(toml_text(PRETRAIN.tables(run)))) == run
    assert [region.speeds for region in run.regions] == [(1.0, 1.0), (1.0, 0.5)]


def test_names_stand_for_their_settings(tmp_path: Path) -> None:
    def rounds(name: str, **changes: object) -> DesyncConfig:
        sets = [f"algorithm={{name='{name}'}}", *(f"algorithm.{key}={value}" for key, value in changes.items())]
        run = PRETRAIN.load(write_run(tmp_path), sets)
        return run.algorithm.desync_config(100, run.training.optimizer, {}, 4)

    assert rounds("ddp").averages_gradients
    assert rounds("local_adam", parameters_every=8).moments_every == {"first_moment": 8, "second_moment": 8}
    assert rounds("desloc", parameters_every=8).moments_every == {"first_moment": 24, "second_moment": 48}
    assert rounds("diloco").moments_every == {}
    assert not rounds("diloco").is_speed_scaled and rounds("diloco_dynamic").is_speed_scaled
    assert rounds("farflung").is_overlapped
    assert rounds("farflung").rounds.num_members_at_start == 4


def test_a_simulation_needs_links_and_a_real_run_does_not(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    PRETRAIN.load(path, ["links=[]"])
    with pytest.raises(ValueError, match="regions 'east' and 'west' have no link, which a simulation needs"):
        PRETRAIN.load(path, ["links=[]"], is_simulated=True)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        PRETRAIN.load(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(ValueError, match="is not TOML"):
        PRETRAIN.load(broken)


def test_the_example_is_a_run() -> None:
    run = PRETRAIN.load(Path(__file__).parents[2] / "examples" / "pretrain.toml", is_simulated=True)
    assert [region.name for region in run.regions] == ["eu", "us"] and run.num_shards == 6


def test_the_run_without_a_file_is_complete() -> None:
    run = PRETRAIN.load(None, is_simulated=True)
    assert run.num_workers == 4 and run.num_steps > 1000 and run.algorithm.name == "farflung"
