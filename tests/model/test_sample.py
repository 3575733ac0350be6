"""The choice of a token: kept sets equal those of transformers, draws follow their distribution and their seed."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from farflung.model.sample import Sampling, choose, keep_likely, log_probability, most_likely


def logits_of(seed: int, num_tokens: int = 50) -> torch.Tensor:
    return torch.randn(num_tokens, generator=torch.Generator().manual_seed(seed)) * 3


@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.05, 1),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
)
def test_filters_keep_what_transformers_keeps(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits_V = logits_of(seed)
    ours_V = keep_likely(logits_V / temperature, Sampling(top_k=top_k, top_p=top_p, min_p=min_p))
    ids = torch.LongTensor([[0]])
    theirs: Any = TemperatureLogitsWarper(temperature)(ids, logits_V[None])
    if top_k:
        theirs = TopKLogitsWarper(top_k)(ids, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(ids, theirs)
    if min_p:
        theirs = MinPLogitsWarper(min_p)(ids, theirs)
    assert torch.equal(ours_V, theirs[0])


def test_zero_temperature_takes_the_most_likely_whatever_the_filters() -> None:
    logits_V = logits_of(1)
    sampling = Sampling(temperature=0, top_k=3, top_p=0.1)
    assert choose(logits_V, sampling, torch.Generator()) == int(logits_V.argmax())


def test_draws_follow_the_distribution_and_the_seed() -> None:
    logits_V = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    generator = torch.Generator().manual_seed(3)
    draws = [choose(logits_V, Sampling(), generator) for _ in range(4000)]
    frequencies = [draws.count(token) / len(draws) for token in range(3)]
    assert frequencies == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    again = torch.Generator().manual_seed(3)
    assert draws == [choose(logits_V, Sampling(), again) for _ in range(4000)]


def test_filters_bound_what_is_drawn() -> None:
    logits_V = logits_of(2)
    best_three = {token for token, _ in most_likely(logits_V, 3)}
    generator = torch.Generator().manual_seed(0)
    drawn = {choose(logits_V, Sampling(temperature=5, top_k=3), generator) for _ in range(300)}
    assert drawn == best_three


def test_repetition_penalty_equals_transformers() -> None:
    logits_V = logits_of(4)
    prompt, answer = [1, 2, 2, 7], [9, 1]
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.LongTensor([prompt + answer]), logits_V[None].clone())[0]
    sampling = Sampling(temperature=0, repetition_penalty=1.7)
    assert choose(logits_V, sampling, torch.Generator(), prompt=prompt, answer=answer) == int(theirs.argmax())


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    logits_V = torch.tensor([3.0, 2.9, 2.0])
    greedy = Sampling(temperature=0, presence_penalty=0.2)
    assert choose(logits_V, greedy, torch.Generator(), prompt=[0, 0, 0]) == 0
    assert choose(logits_V, greedy, torch.Generator(), answer=[0]) == 1
    counted = Sampling(temperature=0, frequency_penalty=0.5)
    assert choose(logits_V, counted, torch.Generator(), answer=[0, 1, 1, 1]) == 0
    assert choose(logits_V, counted, torch.Generator(), answer=[0, 0, 0, 1, 1, 1]) == 2


def test_logit_bias_forces_and_forbids() -> None:
    logits_V = logits_of(5)
    forced = Sampling(temperature=0, logit_bias={17: 100.0})
    assert choose(logits_V, forced, torch.Generator()) == 17
    with pytest.raises(ValueError, match="vocabulary ends at 49"):
        choose(logits_V, Sampling(logit_bias={50: 1.0}), torch.Generator())


def test_log_probabilities_are_those_of_the_raw_distribution() -> None:
    logits_V = logits_of(6)
    expected_V = torch.log_softmax(logits_V.double(), dim=-1)
    assert log_probability(logits_V, 8) == pytest.approx(float(expected_V[8]), abs=1e-5)
    best = most_likely(logits_V, 4)
    assert [token for token, _ in best] == torch.topk(expected_V, 4).indices.tolist()
    assert [value for _, value in best] == pytest.approx(torch.topk(expected_V, 4).values.tolist(), abs=1e-5)
    assert most_likely(logits_V, 0) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 3.0},
        {"frequency_penalty": -3.0},
    ],
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Sampling(**wrong)  # pyright: ignore[reportArgumentType]
