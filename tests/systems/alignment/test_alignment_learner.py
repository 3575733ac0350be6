"""One optimizer step from groups: what is left out, what a step says of itself, and going on from a saved state."""

import math

import pytest
import torch

from farflung.learn.checkpoint import load_checkpoint, save_checkpoint
from farflung.learn.parameters import copies, fingerprint
from farflung.systems.alignment.learner import PolicyLearner
from farflung.systems.alignment.learning_config import AlarmConfig, LearnerConfig, LossConfig
from farflung.systems.alignment.rollouts import Group
from tests.policies import OPTIMIZER, Place, small_model


def learner(loss: LossConfig | None = None, **settings: object) -> PolicyLearner:
    config = LearnerConfig(loss=loss or LossConfig(), optimizer=OPTIMIZER, **settings)  # pyright: ignore
    return PolicyLearner(small_model(), config, group_size=4)


def weights_of(trained: PolicyLearner) -> bytes:
    return fingerprint(trained.snapshot())


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    found = Place.make().groups()
    assert all(len(set(group.rewards)) > 1 for group in found)
    return found


def test_the_same_groups_give_the_same_weights_and_a_group_without_spread_changes_nothing(groups: list[Group]) -> None:
    first, second, third = learner(), learner(), learner()
    equal = Group(9, groups[0].rollouts, (0.5,) * 4)
    alone = Group(10, groups[0].rollouts[:1], (1.0,))
    metrics = first.step(groups)
    second.step(groups)
    with_useless = third.step([*groups, equal, alone])
    assert weights_of(first) == weights_of(second) == weights_of(third) != weights_of(learner())
    assert (with_useless["num_groups"], with_useless["num_groups_equal"], with_useless["num_groups_alone"]) == (5, 1, 1)
    assert with_useless["num_tokens"] == metrics["num_tokens"]


def test_a_step_without_any_spread_moves_nothing_counts_and_raises_an_alarm(groups: list[Group]) -> None:
    trained = learner()
    before = weights_of(trained)
    metrics = trained.step([Group(group.prompt, group.rollouts, (1.0,) * 4) for group in groups])
    assert weights_of(trained) == before and trained.version == 1
    assert metrics["gradient_norm"] == metrics["drift"] == 0
    assert len(trained.alarms) == 1 and "nothing was learned" in trained.alarms[0]


def test_parts_of_any_size_give_the_gradient_of_the_whole(groups: list[Group]) -> None:
    whole, parts = learner(), learner(tokens_at_once=25)
    first, second = whole.step(groups), parts.step(groups)
    assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=1e-5)
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)


def test_on_policy_sampler_and_policy_agree_and_an_old_sampler_does_not(groups: list[Group]) -> None:
    trained = learner(alarms=AlarmConfig(mismatch_max=1e-3))
    metrics = trained.step(groups)
    assert metrics["mismatch"] == pytest.approx(0, abs=1e-7) and metrics["sample_size_share"] == pytest.approx(1)
    assert metrics["staleness"] == metrics["staleness_max"] == 0 and metrics["staleness/0"] == 1
    assert metrics["drift"] > 0 and not trained.alarms
    metrics = trained.step(groups)
    assert metrics["staleness"] == 1 and metrics["staleness/1"] == 1
    assert metrics["mismatch"] > 1e-3 and metrics["sample_size_share"] < 1
    assert any("differ by" in alarm for alarm in trained.alarms)


def test_steps_make_the_reward_rise() -> None:
    place = Place.make(num_steps=20, rows_at_once=512)
    rewards = []
    for number in range(place.config.num_steps):
        found = place.groups(version=number, first_prompt=3 * number)
        rewards.append(place.learner.step(found)["reward"])
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2, rewards


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(name="decoupled", reference_weight=0.1)])
def test_a_saved_learner_goes_on_to_the_bit(groups: list[Group], loss: LossConfig, tmp_path: object) -> None:
    trained = learner(loss, passes=2)
    trained.step(groups)
    tensors, state = trained.state()
    save_checkpoint(tmp_path, tensors, state)  # pyright: ignore[reportArgumentType]
    saved = load_checkpoint(tmp_path)  # pyright: ignore[reportArgumentType]
    trained.step(groups)
    again = learner(loss, passes=2)
    again.restore(saved.tensors, saved.state)
    assert again.version == 1
    metrics = again.step(groups)
    assert weights_of(again) == weights_of(trained)
    assert math.isfinite(metrics["loss"])
    with pytest.raises(ValueError, match="does not fit this model"):
        again.restore({path: tensor for path, tensor in saved.tensors.items() if "wte" not in path}, saved.state)


def test_what_rollout_nodes_install_is_a_copy_in_the_dtype_they_sample_with(groups: list[Group]) -> None:
    trained = PolicyLearner(small_model(), LearnerConfig(), group_size=4, sampling_dtype=torch.bfloat16)
    taken = trained.snapshot()
    assert {tensor.dtype for tensor in taken.values()} == {torch.bfloat16}
    before = copies(taken)
    trained.step(groups)
    assert fingerprint(before) == fingerprint(taken)
    text = groups[0].rollouts[0].prompt_tokens
    assert len(trained.score(text)) == len(text) - 1
