"""Sampling by counter: what is drawn depends on the stream and the weights, and says which those were."""

import pytest
import torch

from farflung.learn.parameters import copies, named_parameters
from farflung.model.counter import gumbel_noise, noisy, stream_key
from farflung.systems.alignment.rollouts import Failure, Rollout, Task
from tests.policies import ANSWER_TOKENS, Place, sampling_policy, small_model

EVERYTHING = 1 << 20
PROMPT = (1, 2, 10, 3, 4, 11)


def rollouts(found: object) -> list[Rollout]:
    assert isinstance(found, list)
    assert all(isinstance(each, Rollout) for each in found), found
    return found


def test_the_largest_noisy_logit_is_a_draw_from_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]])
    num_draws = 4000
    keys = [stream_key(1, number, 0) for number in range(num_draws)]
    drawn = noisy(logits.expand(num_draws, -1), keys, [7] * num_draws).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=5) / num_draws
    torch.testing.assert_close(shares, torch.softmax(logits[0], 0), atol=0.03, rtol=0)


def test_noise_is_the_same_on_every_machine_and_of_every_place_its_own() -> None:
    key = stream_key(0, 1, 2)
    assert gumbel_noise(key, 0, 3).tolist() == pytest.approx(
        [1.668920996566271, -0.5375949369723291, -0.3142524342714679]
    )
    assert not set(gumbel_noise(key, 1, 5).tolist()) & set(gumbel_noise(key, 0, 5).tolist())
    assert len({stream_key(0, 1, 2), stream_key(1, 1, 2), stream_key(0, 2, 1), stream_key(0, 1, 3)}) == 4


def test_answers_do_not_depend_on_what_else_is_sampled() -> None:
    whole = Place.make(rows_at_once=512)
    expected = {rollout.key: rollout for group in whole.groups() for rollout in group.rollouts}
    alone = sampling_policy(small_model())
    alone.install(0, b"", whole.learner.snapshot())
    for (prompt, member), rollout in expected.items():
        alone.begin(Task(prompt, (member,), whole.environment.prompt(prompt), 5, ANSWER_TOKENS))
        (again,) = rollouts(alone.advance(EVERYTHING))
        assert again.answer_tokens == rollout.answer_tokens
        assert again.log_probabilities == pytest.approx(rollout.log_probabilities, abs=1e-5)


def test_a_batch_of_one_answer_is_the_same_to_the_bit_whatever_else_is_under_way() -> None:
    place = Place.make(rows_at_once=1)
    expected = {rollout.key: rollout for group in place.groups() for rollout in group.rollouts}
    for first in (0, 1, 2):
        other = sampling_policy(small_model(), rows_at_once=1)
        other.install(0, place.groups()[0].rollouts[0].weights_hash, place.learner.snapshot())
        for prompt in (*range(first, 3), *range(first)):
            other.begin(Task(prompt, (0, 1, 2, 3), place.environment.prompt(prompt), 5, ANSWER_TOKENS))
            other.advance(1) if prompt == first else None
        for rollout in rollouts([each for _ in range(4) for each in other.advance(1)]):
            assert rollout == expected[rollout.key]


def test_recorded_log_probabilities_are_the_models_own() -> None:
    place = Place.make()
    for group in place.groups():
        for rollout in group.rollouts:
            text = (*rollout.prompt_tokens, *rollout.answer_tokens)
            scored = place.learner.score(text)[-len(rollout.answer_tokens) :]
            assert rollout.log_probabilities == pytest.approx(scored, abs=1e-5)
            assert list(place.policy.score(text))[-len(rollout.answer_tokens) :] == pytest.approx(scored, abs=1e-5)


def test_weights_change_between_two_tokens_and_each_token_says_which_it_had() -> None:
    old, new = copies(named_parameters(small_model(0))), copies(named_parameters(small_model(1)))
    policy = sampling_policy(small_model())
    policy.install(3, b"old", old)
    policy.begin(Task(0, tuple(range(8)), PROMPT, 5, 12))
    begun = rollouts(policy.advance(5))
    policy.install(4, b"new", new)
    ended = rollouts(policy.advance(EVERYTHING))
    assert {rollout.versions[:5] for rollout in ended} == {(3,) * 5}
    assert all(set(rollout.versions[5:]) == {4} and rollout.weights_hash == b"new" for rollout in ended)
    assert all(set(rollout.versions) == {3} for rollout in begun) and len(begun) + len(ended) == 8
    # Every token is what its own version says of all the tokens before it: nothing of the old weights is left over.
    for rollout in ended:
        scored = policy.score((*rollout.prompt_tokens, *rollout.answer_tokens))[-len(rollout.answer_tokens) :]
        assert rollout.log_probabilities[5:] == pytest.approx(scored[5:], abs=1e-5)
        assert rollout.log_probabilities[:5] != pytest.approx(scored[:5], abs=1e-2)


def test_what_does_not_fit_fails_by_name_and_the_rest_goes_on() -> None:
    policy = sampling_policy(small_model())
    policy.install(0, b"", copies(named_parameters(small_model())))
    policy.begin(Task(7, (0,), (1,) * 39, 5, 4))
    policy.begin(Task(8, (0, 1), PROMPT, 5, 4))
    policy.begin(Task(9, (0,), PROMPT, 5, 4))
    policy.abandon(9)
    failure, *ended = policy.advance(EVERYTHING)
    assert isinstance(failure, Failure)
    assert failure.prompt == 7 and "takes 1 to 40 together" in failure.reason
    assert [each.prompt for each in rollouts(ended)] == [8, 8]
    policy.begin(Task(9, (0,), PROMPT, 5, 4))
    policy.advance(1)
    policy.abandon(9)
    assert policy.advance(EVERYTHING) == []
