"""The losses of alignment against closed forms and each other: on policy they are one, off policy each as published."""

import dataclasses
import math

import pytest
import torch

from farflung.systems.alignment.advantage import SurvivorMeter, group_advantages
from farflung.systems.alignment.learning_config import LOSS_NAMES, LossConfig, published
from farflung.systems.alignment.losses import LOSSES, Batch, Totals, divergence, policy_loss

ADVANTAGES = (1.5, -0.5, -1.0)
LENGTHS = (4, 2, 3)
WIDTH = 4
TOTALS = Totals(sum(LENGTHS), len(LENGTHS))


def batch(ratios: torch.Tensor, *, start: torch.Tensor | None = None) -> Batch:
    """Three answers, log mu at random, log pi = log mu + log ratio; `policy` is a leaf that takes gradients."""
    mask = torch.tensor([[float(place < length) for place in range(WIDTH)] for length in LENGTHS])
    sampler = torch.empty(3, WIDTH).uniform_(-2, -0.1, generator=torch.Generator().manual_seed(1)) * mask
    policy = ((sampler + ratios.log()) * mask).requires_grad_()
    advantages = torch.tensor(ADVANTAGES)[:, None].expand(3, WIDTH) * mask
    return Batch(policy, sampler, advantages, mask, start)


def gradient(name: str, given: Batch, **settings: object) -> torch.Tensor:
    config = LossConfig(name=name, **settings)  # pyright: ignore[reportArgumentType]
    given.policy.grad = None
    policy_loss(given, config, TOTALS)[0].backward()
    assert given.policy.grad is not None
    return given.policy.grad.clone()


ON_POLICY = torch.ones(3, WIDTH)
OFF_POLICY = torch.empty(3, WIDTH).uniform_(0.3, 3.0, generator=torch.Generator().manual_seed(2))


def test_every_loss_that_can_be_named_has_its_formula() -> None:
    assert tuple(LOSSES) == LOSS_NAMES


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_every_loss_is_the_policy_gradient(name: str) -> None:
    given = batch(ON_POLICY)
    averaging = "sequence" if name == "gspo" else "token"  # a ratio of whole answers is shared among its tokens
    expected = -given.advantages * given.mask / TOTALS.num_tokens
    if name == "gspo":
        expected = -given.advantages * given.mask / torch.tensor(LENGTHS)[:, None] / TOTALS.num_answers
    torch.testing.assert_close(gradient(name, given, averaging=averaging), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("clip_high", [0.2, 0.28])
def test_a_clip_takes_the_gradient_of_tokens_that_have_gone_far_enough(clip_high: float) -> None:
    found = gradient("dapo", batch(OFF_POLICY), clip_high=clip_high)
    for row, (advantage, length) in enumerate(zip(ADVANTAGES, LENGTHS, strict=True)):
        for place in range(length):
            ratio = float(OFF_POLICY[row, place])
            is_clipped = ratio > 1 + clip_high if advantage > 0 else ratio < 0.8
            expected = 0.0 if is_clipped else -ratio * advantage / TOTALS.num_tokens
            assert float(found[row, place]) == pytest.approx(expected, abs=1e-6)


def test_gspo_clips_whole_answers_by_their_mean_log_ratio() -> None:
    given = batch(OFF_POLICY)
    found = gradient("gspo", given, averaging="sequence", clip_low=0.1, clip_high=0.1)
    for row, (advantage, length) in enumerate(zip(ADVANTAGES, LENGTHS, strict=True)):
        ratio = math.exp(float(OFF_POLICY[row, :length].log().mean()))
        is_clipped = ratio > 1.1 if advantage > 0 else ratio < 0.9
        expected = 0.0 if is_clipped else -ratio * advantage / length / TOTALS.num_answers
        torch.testing.assert_close(found[row, :length], torch.full((length,), expected), atol=1e-6, rtol=1e-5)


def test_cispo_caps_weights_and_takes_no_gradient_away() -> None:
    given = batch(OFF_POLICY)
    expected = -OFF_POLICY.clamp(max=2.0) * given.advantages * given.mask / TOTALS.num_tokens
    torch.testing.assert_close(gradient("cispo", given, ratio_max=2.0), expected, atol=1e-6, rtol=1e-5)


def test_decoupled_with_one_step_a_batch_is_truncated_importance_sampling() -> None:
    given = batch(OFF_POLICY)
    expected = gradient("truncated", given, ratio_max=2.0)
    torch.testing.assert_close(gradient("decoupled", given, ratio_max=2.0), expected)
    torch.testing.assert_close(gradient("cispo", given, ratio_max=2.0), expected)


def test_decoupled_clips_against_the_start_and_corrects_towards_the_sampler() -> None:
    start_ratio = torch.full((3, WIDTH), 1.5)
    plain = batch(OFF_POLICY)
    given = dataclasses.replace(plain, proximal=(plain.sampler + start_ratio.log()) * plain.mask)
    found = gradient("decoupled", given, ratio_max=1.4)
    step_ratio = OFF_POLICY / start_ratio
    is_clipped = torch.where(given.advantages > 0, step_ratio > 1.2, step_ratio < 0.8)
    expected = -1.4 * step_ratio * given.advantages * ~is_clipped * given.mask / TOTALS.num_tokens
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_the_two_sided_clip_bounds_bad_answers_too() -> None:
    found = gradient("two_sided", batch(OFF_POLICY), ratio_max=2.0)
    one_sided = gradient("dapo", batch(OFF_POLICY))
    is_far = (OFF_POLICY > 2.0) & (torch.tensor(ADVANTAGES)[:, None] < 0)
    assert is_far.any()
    torch.testing.assert_close(found, one_sided * ~is_far)


def test_masking_leaves_tokens_out_and_divides_by_all_of_them() -> None:
    given = batch(OFF_POLICY)
    is_outside = (OFF_POLICY < 0.5) | (OFF_POLICY > 2.0)
    assert (is_outside * given.mask).any()
    expected = -OFF_POLICY * given.advantages * given.mask * ~is_outside / TOTALS.num_tokens
    torch.testing.assert_close(gradient("masked", given), expected, atol=1e-6, rtol=1e-5)
    left_out = policy_loss(given, LossConfig(name="masked"), TOTALS)[1]
    assert torch.equal(left_out, is_outside & (given.mask > 0))


def test_dppo_looks_at_probabilities_and_draws_back_to_the_sampler() -> None:
    given = batch(OFF_POLICY.clamp(max=1.1))  # log-probabilities stay below 0
    ratio = OFF_POLICY.clamp(max=1.1)
    moved = given.sampler.exp() * (ratio - 1)
    is_far = torch.where(given.advantages > 0, moved, -moved) > 0.1
    assert 0 < int((is_far * given.mask).sum()) < sum(LENGTHS)
    found = gradient("dppo", given, probability_moved_max=0.1, squared_log_ratio_weight=0.01)
    expected = (-ratio * given.advantages * ~is_far + 0.02 * ratio.log()) * given.mask / TOTALS.num_tokens
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("averaging", ["token", "sequence", "constant"])
@pytest.mark.parametrize("name", ["dppo", "gspo"])
def test_parts_of_a_batch_add_up_to_the_whole(name: str, averaging: str) -> None:
    config = dataclasses.replace(published(name, length_tokens=WIDTH), averaging=averaging)
    whole = batch(OFF_POLICY)
    parts = [
        Batch(*(tensor[rows] for tensor in (whole.policy, whole.sampler, whole.advantages, whole.mask)))
        for rows in (slice(0, 1), slice(1, 3))
    ]
    total = sum(policy_loss(part, config, TOTALS)[0].item() for part in parts)
    assert total == pytest.approx(policy_loss(whole, config, TOTALS)[0].item())


def test_averaging_divides_by_tokens_answers_or_a_constant_length() -> None:
    given = batch(ON_POLICY)
    values = -given.advantages * given.mask
    expected = {
        "token": values.sum() / sum(LENGTHS),
        "sequence": (values.sum(1) / torch.tensor(LENGTHS)).mean(),
        "constant": values.sum() / (3 * 7),
    }
    for averaging, value in expected.items():
        config = LossConfig(name="dapo", averaging=averaging, length_tokens=7)  # pyright: ignore[reportArgumentType]
        assert float(policy_loss(given, config, TOTALS)[0].detach()) == pytest.approx(float(value))


def test_the_divergence_is_the_kullback_leibler_divergence_on_average() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    estimates = divergence(p.log(), q.log())
    assert (estimates >= 0).all()
    assert float((p * estimates).sum()) == pytest.approx(float((p * (p / q).log()).sum()))


def test_a_reference_adds_its_divergence() -> None:
    plain = batch(ON_POLICY)
    given = dataclasses.replace(plain, reference=(plain.sampler - 0.3) * plain.mask)
    with_reference, without = (
        policy_loss(given, LossConfig(reference_weight=weight), TOTALS)[0].item() for weight in (0.5, 0.0)
    )
    assert with_reference - without == pytest.approx(0.5 * (math.exp(-0.3) - 1 + 0.3), rel=1e-4)


def test_advantages_are_differences_from_the_mean_of_those_that_came() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 1.0]).values == (0.5, -0.5, -0.5, 0.5)
    assert group_advantages([1.0, 0.0]).values == (0.5, -0.5)
    scaled = group_advantages([1.0, 0.0, 0.0, 1.0], is_scaled=True).values
    assert scaled == pytest.approx([math.sqrt(0.75), -math.sqrt(0.75), -math.sqrt(0.75), math.sqrt(0.75)], abs=1e-5)
    assert group_advantages([0.7]).verdict == "alone"


def test_equal_rewards_are_seen_as_equal_where_their_deviation_is_not_zero() -> None:
    rewards = [0.1 + 0.2] * 6  # its mean rounds to another number
    found = group_advantages(rewards, is_scaled=True)
    assert found.verdict == "equal rewards" and set(found.values) == {0.0}
    assert group_advantages([0.3, 0.1 + 0.2]).is_used


def test_survivors_are_compared_with_complete_groups() -> None:
    meter = SurvivorMeter()
    assert math.isnan(meter.length_ratio)
    meter.add([10, 20, 30, 40], 4)
    meter.add([10, 20], 4)
    assert (meter.num_groups, meter.num_incomplete, meter.num_lost) == (2, 1, 2)
    assert meter.length_ratio == pytest.approx(15 / 25)
    again = SurvivorMeter()
    again.load(meter.state())
    assert again.length_ratio == meter.length_ratio


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"name": "ppo2"}, "unknown loss 'ppo2'; there are dppo, grpo"),
        ({"averaging": "mean"}, "averaging must be one of token, sequence, constant"),
        ({"averaging": "constant"}, "length_tokens"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"ratio_max": 0.5}, "ratio_max"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_sentence(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        LossConfig(**settings)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, float("nan")])
