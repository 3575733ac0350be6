"""Answers are drawn again on the trusted side: honest ones pass, and each kind of lie is named."""

import msgspec
import pytest
import torch

from farflung.learn.parameters import Tensors, copies, named_parameters
from farflung.systems.alignment.auditor import ReplayAuditor, Tolerance
from farflung.systems.alignment.rollouts import Rollout, Task
from tests.policies import ANSWER_TOKENS, END_TOKEN, Place, sampling_policy, small_model

Weights = dict[int, Tensors]
FIRST_VERSION, NEXT_VERSION = 0, 1


def moved(weights: Tensors, size: float) -> Tensors:
    """As after a step of this size in every value."""
    stream = torch.Generator().manual_seed(9)
    return {name: tensor + size * torch.randn(tensor.shape, generator=stream) for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def place() -> Place:
    return Place.make(rows_at_once=512)


@pytest.fixture(scope="module")
def weights(place: Place) -> Weights:
    first = place.learner.snapshot()
    return {FIRST_VERSION: first, NEXT_VERSION: moved(first, 1e-3)}


@pytest.fixture(scope="module")
def auditor(place: Place) -> ReplayAuditor:
    return ReplayAuditor(
        small_model(4), place.environment, seed=5, stop_tokens=[END_TOKEN], num_tokens_max=ANSWER_TOKENS
    )


def answers(place: Place, weights: Tensors, *, version: int, num_prompts: int = 3, seed: int = 5) -> list[Rollout]:
    policy = sampling_policy(small_model(), rows_at_once=512)
    policy.install(version, b"", copies(weights))
    for number in range(num_prompts):
        policy.begin(Task(number, (0, 1, 2, 3), place.environment.prompt(number), seed, ANSWER_TOKENS))
    found = policy.advance(1 << 20)
    return [rollout for rollout in found if isinstance(rollout, Rollout)]


def test_honest_answers_pass_with_any_batch(place: Place, weights: Weights, auditor: ReplayAuditor) -> None:
    for version in weights:
        for rollout in answers(place, weights[version], version=version, num_prompts=5):
            assert auditor.check(rollout, weights) is None


def test_honest_answers_of_two_versions_pass(place: Place, weights: Weights, auditor: ReplayAuditor) -> None:
    policy = sampling_policy(small_model(), rows_at_once=512)
    policy.install(FIRST_VERSION, b"", weights[FIRST_VERSION])
    policy.begin(Task(0, tuple(range(8)), place.environment.prompt(0), 5, ANSWER_TOKENS))
    ended = [*policy.advance(2)]
    policy.install(NEXT_VERSION, b"", weights[NEXT_VERSION])
    ended += policy.advance(9)
    mixed = [rollout for rollout in ended if isinstance(rollout, Rollout)]
    assert {len(set(rollout.versions)) for rollout in mixed} >= {2}
    assert all(auditor.check(rollout, weights) is None for rollout in mixed)


def num_checked_until_caught(found: list[Rollout], auditor: ReplayAuditor, weights: Weights) -> int:
    """How many answers of a liar are looked at before one is refused."""
    reasons = [auditor.check(rollout, weights) for rollout in found]
    assert any(reasons), "the liar is never caught"
    return 1 + next(number for number, reason in enumerate(reasons) if reason)


def test_another_model_is_caught_by_its_first_answer(place: Place, weights: Weights, auditor: ReplayAuditor) -> None:
    other = copies(named_parameters(small_model(1)))
    assert num_checked_until_caught(answers(place, other, version=0), auditor, weights) == 1


def test_a_rounded_model_is_caught_by_its_first_answer(place: Place, weights: Weights, auditor: ReplayAuditor) -> None:
    rounded = {name: tensor.bfloat16().float() for name, tensor in weights[0].items()}
    assert num_checked_until_caught(answers(place, rounded, version=0), auditor, weights) == 1


def test_an_old_version_labelled_new_is_caught_by_its_first_answer(
    place: Place, weights: Weights, auditor: ReplayAuditor
) -> None:
    late = answers(place, weights[FIRST_VERSION], version=NEXT_VERSION)
    assert num_checked_until_caught(late, auditor, weights) == 1


def test_the_best_of_four_draws_is_caught_by_the_second_answer(
    place: Place, weights: Weights, auditor: ReplayAuditor
) -> None:
    """Of draws of other seeds under the right one's name, one in four is the right one by chance."""
    rounds = [answers(place, weights[0], version=0, seed=seed) for seed in (5, 6, 7, 8)]
    best = [max(draws, key=place.environment.reward) for draws in zip(*rounds, strict=True)]
    claimed = [msgspec.structs.replace(rollout, seed=5) for rollout in best]
    assert num_checked_until_caught(claimed, auditor, weights) <= 2
    refused = [rollout for rollout in claimed if auditor.check(rollout, weights) is not None]
    assert all(rollout in rounds[0] for rollout in claimed if rollout not in refused)


def test_invented_log_probabilities_are_caught_by_the_first_answer(
    place: Place, weights: Weights, auditor: ReplayAuditor
) -> None:
    honest = answers(place, weights[0], version=0)
    for shift in (-0.01, -1.0):
        invented = [
            msgspec.structs.replace(each, log_probabilities=tuple(value + shift for value in each.log_probabilities))
            for each in honest
        ]
        assert num_checked_until_caught(invented, auditor, weights) == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 6}, "seed 6"),
        ({"prompt": 1}, "another one"),
        ({"finish_reason": "length"}, "before its limit"),
        ({"member": 3}, "are not what version 0 draws"),
    ],
)
def test_what_was_asked_and_how_it_ended_are_checked(
    place: Place, weights: Weights, auditor: ReplayAuditor, change: dict[str, object], word: str
) -> None:
    found = answers(place, weights[0], version=0, num_prompts=12)
    stopped = next(each for each in found if each.finish_reason == "stop" and len(each.answer_tokens) > 1)
    assert word in (auditor.check(msgspec.structs.replace(stopped, **change), weights) or "")
    cut = msgspec.structs.replace(
        stopped,
        answer_tokens=stopped.answer_tokens[:-1],
        log_probabilities=stopped.log_probabilities[:-1],
        versions=stopped.versions[:-1],
    )
    assert "no stop token ends it" in (auditor.check(cut, weights) or "")


def test_half_precision_is_allowed_its_rounding_and_another_model_is_not(place: Place) -> None:
    """Sampled with the same rounded weights by a machine that computes in float32, read again by one in bfloat16."""
    weights = {0: {name: tensor.bfloat16() for name, tensor in place.learner.snapshot().items()}}
    policy = sampling_policy(small_model(), rows_at_once=512)
    auditor = ReplayAuditor(
        small_model().bfloat16(), place.environment, seed=5, stop_tokens=[END_TOKEN], num_tokens_max=ANSWER_TOKENS
    )
    policy.install(0, b"", weights[0])
    for number in range(8):
        policy.begin(Task(number, (0, 1, 2, 3), place.environment.prompt(number), 5, ANSWER_TOKENS))
    found = [rollout for rollout in policy.advance(99) if isinstance(rollout, Rollout)]
    assert all(auditor.check(rollout, weights) is None for rollout in found)
    other = {0: {name: tensor.bfloat16() for name, tensor in named_parameters(small_model(1)).items()}}
    assert num_checked_until_caught(found, auditor, other) == 1
    strict = ReplayAuditor(
        small_model().bfloat16(),
        place.environment,
        seed=5,
        stop_tokens=[END_TOKEN],
        num_tokens_max=ANSWER_TOKENS,
        tolerance=Tolerance(1e-6, 0.0),
    )
    assert any(strict.check(rollout, weights) for rollout in found), "the two ways of computing do not even differ"
