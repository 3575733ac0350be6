"""A pilot of alignment, without a run: how long it is, what it is made of, and what of its log is compared."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from farflung.apps.align.materials import Materials
from farflung.apps.align.run_file import ALIGN
from farflung.apps.pilot.aligning import (
    DTYPE,
    SmallAlignment,
    compared,
    mean_share,
    sites_of_processes,
    sized_updates,
)
from farflung.apps.pilot.alignment_speeds import Speeds, Trained, changed_share
from farflung.apps.pilot.exercise import NUM_PROBLEMS, reward, write_exercise
from farflung.apps.pilot.local_run import Small
from farflung.apps.plan.align_stand_in import Training
from farflung.apps.plan.aligning import try_method
from farflung.apps.plan.goals import AlignGoal
from farflung.apps.plan.plan_file import plan_of
from farflung.apps.plan.sizes import sizes_of
from farflung.apps.plan.words import said
from farflung.apps.runs.history import History, Point
from farflung.systems.alignment.colocated import install, sample
from farflung.systems.alignment.config import WeightsConfig
from farflung.systems.alignment.deltas import NOTHING, Version, pack_version, version_of

MODEL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 600,
}
GOAL = AlignGoal(prompts_per_update=2, answers_per_prompt=4, prompt_tokens=12, answer_tokens=16, updates=20)
SPEEDS = {"train_tokens_per_second": 448.0, "blocks_per_second": 100.0, "forward_tokens_per_second": 1e5}
PLAN = plan_of(
    {
        "goal": {"kind": "align"},
        "model": MODEL,
        "sites": [{"name": "east"}, {"name": "west"}],
        "machines": [{"site": site, "device": "cpu", **SPEEDS} for site in ("east", "west")],
    }
)
SEQUENTIAL = said("method all", method="sequential")


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    tables = write_exercise(tmp_path_factory.mktemp("exercise"), sizes_of(MODEL), GOAL.prompt_tokens, DTYPE)
    training = {"prompts_per_step": 2, "answers_per_prompt": 4, "tokens_per_answer": 16, "learning_rate": 3e-6}
    return Materials.gather(ALIGN.read({**tables, "training": training}))


def test_what_is_sampled_is_as_long_as_planned_and_differs_in_worth(materials: Materials) -> None:
    materials.check()
    environment, policy, config = materials.environment(), materials.policy(), materials.run.conversation
    assert {len(environment.prompt(number)) for number in range(NUM_PROBLEMS)} == {GOAL.prompt_tokens}
    install(policy, 0, materials.first_weights())
    for group in sample(policy, environment, range(4), config):
        assert {len(one.answer_tokens) for one in group.rollouts} == {GOAL.answer_tokens}
        assert len(set(group.rewards)) > 1
    assert {str(tensor.dtype) for tensor in materials.first_weights().values()} == {"torch.bfloat16"}
    assert 0 <= reward("1 2 3", {}) < 1 and reward("1 2 3", {}) == reward("1 2 3", {}) != reward("1 2 4", {})


def versions_of(materials: Materials, num_steps: int) -> list[Version]:
    """What so many real steps make."""
    learner, policy, environment = materials.learner(), materials.policy(), materials.environment()
    versions = [version_of(0, learner.snapshot())]
    for number in range(num_steps):
        install(policy, number, learner.snapshot())
        learner.step(sample(policy, environment, range(2 * number, 2 * number + 2), materials.run.conversation))
        versions.append(version_of(number + 1, learner.snapshot()))
    return versions


def test_versions_are_as_large_as_the_plan_takes_them_to_be(materials: Materials) -> None:
    config, versions = WeightsConfig(), versions_of(materials, 4)
    first = pack_version(versions[0], NOTHING, config, None).manifest.num_bytes
    pairs = list(itertools.pairwise(versions))
    sizes = [pack_version(after, before, config, None).manifest.num_bytes for before, after in pairs]
    shares = [changed_share(after, before) for before, after in pairs]
    planned = Training(sizes_of(MODEL).shapes, sum(shares) / len(shares), torch.bfloat16)
    old = version_of(0, planned.snapshot())
    planned.step([])
    delta = pack_version(version_of(1, planned.snapshot()), old, config, None).manifest.num_bytes
    assert pack_version(old, NOTHING, config, None).manifest.num_bytes == pytest.approx(first, rel=0.01)
    assert delta == pytest.approx(sum(sizes) / len(sizes), rel=0.08)


def test_a_run_has_as_many_updates_as_fit_and_is_refused_if_they_are_too_few() -> None:
    sizes = sizes_of(MODEL)
    one, ten = (try_method(replace(GOAL, updates=count), sizes, SEQUENTIAL, PLAN).seconds for count in (1, 10))
    update = (ten - one) / 9
    assert sized_updates(GOAL, sizes, SEQUENTIAL, PLAN, one + 9.5 * update) == 10
    with pytest.raises(
        ValueError, match=r"4 updates of sequential over all sites take \d+ s here.* give --seconds \d+"
    ):
        sized_updates(GOAL, sizes, SEQUENTIAL, PLAN, one + update)


def test_the_share_that_changes_is_that_of_as_many_updates_as_are_made() -> None:
    speeds = Speeds(Trained(1.0, 1.0, (0.06, 0.03)), ())
    assert mean_share(speeds) == pytest.approx(0.045)
    assert mean_share(speeds, 1) == pytest.approx(0.06)
    late = mean_share(speeds, 1001) * 1001 - mean_share(speeds, 1000) * 1000
    assert late == pytest.approx(0.03 / math.sqrt(1.81 / 0.19), rel=1e-3)


def test_updates_that_were_not_seen_are_taken_to_change_what_they_do(materials: Materials) -> None:
    """A few steps foretell the mean of many, which get shorter while Adam begins."""
    num_steps = 24
    shares = [changed_share(after, before) for before, after in itertools.pairwise(versions_of(materials, num_steps))]
    few = Speeds(Trained(1.0, 1.0, tuple(shares[:6])), ())
    assert mean_share(few, num_steps) == pytest.approx(sum(shares) / num_steps, rel=0.08)


def test_processes_stand_for_the_trainer_and_for_the_workers_of_each_site() -> None:
    machines = [
        {"site": "east", "device": "cpu", "train_tokens_per_second": 1.0, "count": 3},
        {"site": "west", "device": "cpu", "train_tokens_per_second": 9.0},
    ]
    tables = {"goal": {"kind": "align"}, "model": MODEL, "sites": [{"name": "east"}, {"name": "west"}]}
    sizes, plan = sizes_of(MODEL), plan_of({**tables, "machines": machines})
    assert sites_of_processes(plan, GOAL, sizes, SEQUENTIAL) == ["west", "east"]
    one = said("method one", method="async", site="east")
    assert sites_of_processes(plan, GOAL, sizes, one) == ["east", "east"]
    assert sites_of_processes(plan, GOAL, sizes, said("method alone", method="colocated")) == ["west"]


def test_what_was_done_is_compared_from_its_first_update_on() -> None:
    sizes = sizes_of(MODEL)
    first, whole = (try_method(replace(GOAL, updates=count), sizes, SEQUENTIAL, PLAN) for count in (1, 20))
    history = History(link_bytes={("east", "west"): 5000})
    for seconds, num_steps in ((2.0, 1), (3.0, 1), (4.0, 2), (14.0, 7), (24.0, 11), (60.0, 11)):
        history.append(Point(seconds=seconds, seat="t", region="east", num_steps=num_steps, num_tokens=0, loss=None))
    aligned = SmallAlignment(Small({}, SEQUENTIAL, whole, 20), first, GOAL)
    time, rate, there, back = compared(aligned, history, (), is_whole=False).rows
    each = (whole.seconds - first.seconds) / 19
    assert "10 updates" in time.what()
    assert time.predicted == pytest.approx(10 * each) and time.measured == pytest.approx(10 / 0.4)
    assert rate.predicted == pytest.approx(8 * 16 / each) and rate.measured == pytest.approx(8 * 16 * 0.4)
    way = ("east", "west")
    assert there.predicted == pytest.approx(first.sent[way] + 10 * (whole.sent[way] - first.sent[way]) / 19)
    assert (there.measured, back.measured) == (5000, 0)
    assert not compared(aligned, History(), (), is_whole=False).rows
