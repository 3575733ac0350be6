"""The decode loop against transformers' own generate: same tokens, same scores, and nothing kept after the end."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

from farflung.model import generator as generator_module
from farflung.model.generator import GeneratedToken, GenerationRequest, ModelGenerator, PromptScores, stop_tokens_of
from farflung.model.sample import Sampling

PROMPT = (5, 17, 3, 60, 22)
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_id=96,
    )
    return LlamaForCausalLM(config).eval()


def generated(generator: ModelGenerator, request: GenerationRequest) -> list[GeneratedToken]:
    return [step for step in generator.stream(request) if isinstance(step, GeneratedToken)]


def tokens_of(generator: ModelGenerator, request: GenerationRequest, row: int = 0) -> list[int]:
    return [step.scored.token for step in generated(generator, request) if step.row == row]


def hugging_face_greedy(model: PreTrainedModel, num_tokens: int) -> list[int]:
    ids = model.generate(torch.tensor([PROMPT]), max_new_tokens=num_tokens, do_sample=False)  # pyright: ignore[reportCallIssue]
    return ids[0, len(PROMPT) :].tolist()


def test_greedy_equals_generate(model: PreTrainedModel) -> None:
    request = GenerationRequest(prompt=PROMPT, num_tokens_max=40, sampling=GREEDY, stop_tokens=stop_tokens_of(model))
    tokens = tokens_of(ModelGenerator(model), request)
    assert tokens == hugging_face_greedy(model, 40)
    assert len(set(tokens)) > 5


def test_greedy_equals_generate_for_a_family_with_absolute_positions() -> None:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, eos_token_id=96
    )
    model = GPT2LMHeadModel(config).eval()
    request = GenerationRequest(prompt=PROMPT, num_tokens_max=30, sampling=GREEDY, stop_tokens=(96,))
    assert tokens_of(ModelGenerator(model), request) == hugging_face_greedy(model, 30)


def test_seeded_sampling_equals_generate(model: PreTrainedModel) -> None:
    torch.manual_seed(11)
    drawn = model.generate(  # pyright: ignore[reportCallIssue]
        torch.tensor([PROMPT]), max_new_tokens=40, do_sample=True, temperature=0.8, top_k=20, top_p=0.9
    )
    sampling = Sampling(temperature=0.8, top_k=20, top_p=0.9)
    request = GenerationRequest(
        prompt=PROMPT, num_tokens_max=40, sampling=sampling, seed=11, stop_tokens=stop_tokens_of(model)
    )
    assert tokens_of(ModelGenerator(model), request) == drawn[0, len(PROMPT) :].tolist()


def test_a_stop_token_or_the_limit_ends_the_row_and_says_so(model: PreTrainedModel) -> None:
    tokens = tokens_of(ModelGenerator(model), GenerationRequest(prompt=PROMPT, num_tokens_max=10, sampling=GREEDY))
    stop = next(token for position, token in enumerate(tokens) if position > 2 and token not in tokens[:position])
    request = GenerationRequest(prompt=PROMPT, num_tokens_max=10, sampling=GREEDY, stop_tokens=(stop,))
    stopped = generated(ModelGenerator(model), request)
    assert [step.scored.token for step in stopped] == tokens[: tokens.index(stop) + 1]
    assert [step.finish_reason for step in stopped] == [None] * (len(stopped) - 1) + ["stop"]
    full = generated(ModelGenerator(model), GenerationRequest(prompt=PROMPT, num_tokens_max=3, sampling=GREEDY))
    assert [step.finish_reason for step in full] == [None, None, "length"]


def test_rows_are_seeded_one_by_one_and_end_on_their_own(model: PreTrainedModel) -> None:
    three = GenerationRequest(prompt=PROMPT, num_tokens_max=12, num_rows=3, seed=7)
    rows = [tokens_of(ModelGenerator(model), three, row) for row in range(3)]
    assert len({tuple(row) for row in rows}) == 3
    alone = GenerationRequest(prompt=PROMPT, num_tokens_max=12, seed=8)
    assert tokens_of(ModelGenerator(model), alone) == rows[1]

    counts = [0, 0, 0]

    def is_last(row: int, token: int) -> bool:
        counts[row] += 1
        return row == 1 and counts[row] == 4

    steps = [step for step in ModelGenerator(model).stream(three, is_last) if isinstance(step, GeneratedToken)]
    assert [sum(step.row == row for step in steps) for row in range(3)] == [12, 4, 12]
    assert [step.scored.token for step in steps if step.row == 2] == rows[2]


@pytest.mark.parametrize("logits_max", [1 << 26, 97 * 2])
def test_prompt_scores_equal_the_log_softmax_of_one_forward(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, logits_max: int
) -> None:
    monkeypatch.setattr(generator_module, "SCORED_LOGITS_MAX", logits_max)
    request = GenerationRequest(
        prompt=PROMPT, num_tokens_max=1, sampling=GREEDY, scores_prompt=True, num_alternatives=3
    )
    first, second = ModelGenerator(model).stream(request)
    assert isinstance(first, PromptScores)
    assert isinstance(second, GeneratedToken)
    with torch.inference_mode():
        expected_TV = torch.log_softmax(model(torch.tensor([PROMPT])).logits[0], dim=-1)
    assert [scored.token for scored in first.tokens] == list(PROMPT)
    assert first.tokens[0].log_probability is None
    for position, scored in enumerate(first.tokens[1:]):
        assert scored.log_probability == pytest.approx(float(expected_TV[position, scored.token]), abs=1e-4)
        best = torch.topk(expected_TV[position], 3)
        assert [token for token, _ in scored.alternatives] == best.indices.tolist()
    assert second.scored.token == int(expected_TV[-1].argmax())
    assert second.scored.log_probability == pytest.approx(float(expected_TV[-1].max()), abs=1e-4)


def test_scoring_alone_generates_nothing(model: PreTrainedModel) -> None:
    (only,) = ModelGenerator(model).stream(GenerationRequest(prompt=PROMPT, num_tokens_max=0, scores_prompt=True))
    assert isinstance(only, PromptScores)


def test_closing_between_tokens_frees_the_cache_at_once(model: PreTrainedModel) -> None:
    events: list[str] = []

    @contextmanager
    def open_cache(num_tokens: int) -> Iterator[Cache]:
        events.append(f"open for {num_tokens}")
        try:
            yield DynamicCache(config=model.config)
        finally:
            events.append("closed")

    stream = ModelGenerator(model, open_cache=open_cache).stream(
        GenerationRequest(prompt=PROMPT, num_tokens_max=50, sampling=GREEDY, num_rows=2)
    )
    assert events == []
    next(stream)
    next(stream)
    assert events == ["open for 110"]
    assert not torch.is_inference_mode_enabled()
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert events == ["open for 110", "closed"]


def test_the_version_of_the_weights_is_read_at_each_token(model: PreTrainedModel) -> None:
    versions = iter(["one", "one", "two"])
    generator = ModelGenerator(model, weights_version=lambda: next(versions))
    steps = generated(generator, GenerationRequest(prompt=PROMPT, num_tokens_max=3, sampling=GREEDY))
    assert [step.weights_version for step in steps] == ["one", "one", "two"]


def test_what_does_not_fit_the_context_is_refused_with_the_numbers(model: PreTrainedModel) -> None:
    request = GenerationRequest(prompt=(1,) * 60, num_tokens_max=5)
    with pytest.raises(ValueError, match="60 tokens and 5 are to follow, but the model takes at most 64"):
        next(iter(ModelGenerator(model).stream(request)))
    with pytest.raises(ValueError, match="prompt is empty"):
        GenerationRequest(prompt=(), num_tokens_max=5)
