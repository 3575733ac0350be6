"""Guessing ahead changes how many forwards an answer takes, and not one of its tokens."""

from collections.abc import Sequence

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

from farflung.model.drafts import Draft, Drafter, DraftModel, PromptLookup
from farflung.model.generator import GeneratedToken, GenerationRequest, ModelGenerator, Speculation
from farflung.model.sample import Sampling

PROMPT = (5, 17, 3, 60, 22, 41, 5, 17, 3)
VOCABULARY = 97
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "sampled": Sampling(temperature=0.9),
    "filtered": Sampling(temperature=0.7, top_k=30, top_p=0.9, min_p=0.01),
    "penalised": Sampling(temperature=0.8, repetition_penalty=1.2, frequency_penalty=0.5, logit_bias={7: 2.0}),
}


def small_model(seed: int, num_layers: int = 2, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.set_num_threads(1)
    return small_model(0)


class Counting(ModelGenerator):
    """Counts forwards."""

    num_forwards = 0
    num_positions = 0

    def forward(self, tokens_NT: torch.Tensor, cache: Cache, *, num_logits: int = 1) -> torch.Tensor:
        self.num_forwards += 1
        self.num_positions += tokens_NT.shape[1]
        return super().forward(tokens_NT, cache, num_logits=num_logits)


class _Told:
    def __init__(self, text: Sequence[int]) -> None:
        self._text = text

    def open(self, prompt: Sequence[int], sampling: Sampling) -> Draft:
        return self

    def guess(self, answer: Sequence[int], num_tokens: int, stream: torch.Generator) -> list[int]:
        return list(self._text[len(answer) : len(answer) + num_tokens])


def ahead(model: PreTrainedModel, drafter: Drafter, seconds_per_forward: float = 1.0) -> Counting:
    """A generator whose forwards take, by its clock, as long whatever they hold: the deepest guesses pay."""
    generator: Counting
    now = lambda: seconds_per_forward * generator.num_forwards  # noqa: E731
    generator = Counting(model, speculation=Speculation(drafter, now))
    return generator


def answer_of(generator: ModelGenerator, request: GenerationRequest) -> list[GeneratedToken]:
    return [step for step in generator.stream(request) if isinstance(step, GeneratedToken)]


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("kind", ["lookup", "itself", "another model", "a smaller vocabulary"])
def test_the_answer_is_the_same_whoever_guesses(model: PreTrainedModel, name: str, kind: str) -> None:
    drafter = {
        "lookup": PromptLookup,
        "itself": lambda: DraftModel(model, VOCABULARY),
        "another model": lambda: DraftModel(small_model(1, num_layers=1), VOCABULARY),
        "a smaller vocabulary": lambda: DraftModel(small_model(2, vocabulary=90), VOCABULARY),
    }[kind]()
    request = GenerationRequest(prompt=PROMPT, num_tokens_max=60, sampling=SAMPLINGS[name], seed=3, num_alternatives=2)
    plain, generator = Counting(model), ahead(model, drafter)
    expected, said = answer_of(plain, request), answer_of(generator, request)
    assert [step.scored.token for step in said] == [step.scored.token for step in expected]
    for own, other in zip(said, expected, strict=True):
        assert own.finish_reason == other.finish_reason
        assert own.scored.log_probability == pytest.approx(other.scored.log_probability, abs=1e-4)
    num_guessed = sum(step.is_guessed for step in said)
    assert generator.num_forwards == plain.num_forwards - num_guessed
    if kind == "itself":
        assert generator.num_forwards < plain.num_forwards / 6, "a draft that draws with the same noise is always right"


def test_guesses_that_are_right_up_to_somewhere_count_up_to_there(model: PreTrainedModel) -> None:
    request = GenerationRequest(prompt=PROMPT, num_tokens_max=40, sampling=Sampling(temperature=0.9), seed=1)
    expected = [step.scored.token for step in answer_of(ModelGenerator(model), request)]
    wrong = [token if number % 7 else (token + 1) % VOCABULARY for number, token in enumerate(expected)]
    generator = ahead(model, _Told(wrong))
    said = answer_of(generator, request)
    assert [step.scored.token for step in said] == expected
    assert {number for number, step in enumerate(said) if not step.is_guessed} >= set(range(0, 40, 7))
    assert generator.num_forwards < 20


def test_what_a_stop_token_cuts_off_is_not_said(model: PreTrainedModel) -> None:
    sampling = SAMPLINGS["sampled"]
    whole = GenerationRequest(prompt=PROMPT, num_tokens_max=40, sampling=sampling, seed=1)
    expected = [step.scored.token for step in answer_of(ModelGenerator(model), whole)]
    stop = next(token for number, token in enumerate(expected) if number > 12 and token not in expected[:number])
    request = GenerationRequest(prompt=PROMPT, num_tokens_max=40, sampling=sampling, seed=1, stop_tokens=(stop,))
    said = answer_of(ahead(model, _Told(expected)), request)
    assert [step.scored.token for step in said] == expected[: expected.index(stop) + 1]
    assert said[-1].finish_reason == "stop"


def test_several_rows_are_decoded_without_guesses(model: PreTrainedModel) -> None:
    request = GenerationRequest(prompt=PROMPT, num_tokens_max=8, num_rows=2, seed=4)
    said = answer_of(ahead(model, PromptLookup()), request)
    assert [(step.row, step.scored.token) for step in said] == [
        (step.row, step.scored.token) for step in answer_of(ModelGenerator(model), request)
    ]
    assert not any(step.is_guessed for step in said)


def test_lookup_copies_what_followed_the_longest_match_and_goes_on_in_a_loop() -> None:
    stream = torch.Generator()
    draft = PromptLookup().open([1, 2, 3, 9, 2, 3, 4, 5, 1], Sampling())
    assert draft.guess([], 4, stream) == [], "one token is no match"
    assert draft.guess([2, 3], 3, stream) == [9, 2, 3], "three tokens that match come before two that were later"
    assert draft.guess([2, 3, 4], 3, stream) == [5, 1, 2]
    loop = PromptLookup().open([7, 8, 7, 8], Sampling())
    assert loop.guess([], 5, stream) == [7, 8, 7, 8, 7]


def test_a_draft_stops_guessing_where_its_context_ends(model: PreTrainedModel) -> None:
    drafter = DraftModel(model, VOCABULARY)
    draft = drafter.open([3] * 120, Sampling(temperature=0))
    assert len(draft.guess([], 8, torch.Generator())) == 8
    assert draft.guess([3], 8, torch.Generator()) == []
