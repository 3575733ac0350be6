"""The API asked through the real openai client against a real process: the answers are those of the local model."""

import math

import openai
import pytest
import torch
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from transformers import PreTrainedModel, PreTrainedTokenizerBase

pytestmark = pytest.mark.loopback

PROMPT = "def main("
TOOL = {"type": "function", "function": {"name": "f"}}


def local_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, num_tokens: int) -> str:
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert isinstance(ids, torch.Tensor)
    generated = model.generate(ids, max_new_tokens=num_tokens, do_sample=False)  # pyright: ignore[reportCallIssue]
    answer = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
    assert isinstance(answer, str)
    return answer


def test_models_are_listed_and_described(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny-base", "tools"]
    assert client.models.retrieve("tiny").object == "model"


def test_a_greedy_chat_equals_local_generate(
    client: OpenAI, tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": PROMPT}], temperature=0, max_tokens=24
    )
    expected = local_answer(tiny_model, tiny_tokenizer, PROMPT + "\n", 24)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens == len(tiny_tokenizer.encode(PROMPT + "\n"))


def test_text_parts_are_one_message(client: OpenAI) -> None:
    whole = [{"role": "user", "content": PROMPT}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "def "}, {"type": "text", "text": "main("}]}]
    answers = [
        client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_completion_tokens=8)  # pyright: ignore[reportArgumentType]
        for messages in (whole, parts)
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_a_stream_adds_up_to_the_whole_and_ends_with_its_usage(client: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": PROMPT}]
    whole = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=30)
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=messages,
            temperature=0,
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(bool(piece) for piece in pieces) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_n_answers_differ_and_the_seed_brings_them_back(client: OpenAI) -> None:
    def ask(n: int, seed: int | None) -> list[str]:
        answer = client.completions.create(model="tiny", prompt=PROMPT, n=n, seed=seed, max_tokens=12)
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.text for choice in answer.choices]

    first = ask(3, 7)
    assert len(set(first)) == 3
    assert ask(3, 7) == first
    assert ask(1, 8) == first[1:2]
    assert ask(1, None) != ask(1, None)


def test_a_stop_string_ends_the_answer_before_it(client: OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=40).choices[0].text
    stop = whole[10:13]
    answer = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=40, stop=[stop, "@@@"])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = client.completions.create(
        model="tiny", prompt=PROMPT, temperature=0, max_tokens=40, stop=stop, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


def test_chat_log_probabilities_are_the_models_own(
    client: OpenAI, tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=4,
        seed=1,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    ids = tiny_tokenizer(PROMPT + "\n", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected_V = torch.log_softmax(tiny_model(ids).logits[0, -1], dim=-1)
    best = torch.topk(expected_V, 3)
    first = logprobs.content[0]
    assert [one.logprob for one in first.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-3)
    spelled = bytes(first.bytes or [])
    (token,) = [token for token in range(len(tiny_tokenizer)) if spelled == spelling_of(tiny_tokenizer, token)]
    assert first.logprob == pytest.approx(float(expected_V[token]), abs=1e-3)
    content = answer.choices[0].message.content
    assert b"".join(bytes(one.bytes or []) for one in logprobs.content).decode(errors="replace") == content


def spelling_of(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    from farflung.apps.http.spelling import Spelling

    return Spelling(tokenizer).bytes_of(token)


def test_echo_with_logprobs_scores_a_prompt_of_tokens(
    client: OpenAI, tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    tokens = tiny_tokenizer.encode("def main(arguments):\n    return")
    answer = client.completions.create(
        model="tiny", prompt=tokens, max_tokens=1, echo=True, logprobs=1, temperature=0
    ).choices[0]
    with torch.inference_mode():
        expected_TV = torch.log_softmax(tiny_model(torch.tensor([tokens])).logits[0], dim=-1)
    logprobs = answer.logprobs
    assert logprobs is not None
    values, tops, offsets = logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset
    assert values is not None and tops is not None and offsets is not None and logprobs.tokens is not None
    assert len(values) == len(tops) == len(offsets) == len(tokens) + 1
    assert values[0] is None and tops[0] is None
    for position, token in enumerate(tokens[1:]):
        value = values[position + 1]
        assert value == pytest.approx(float(expected_TV[position, token]), abs=1e-3)
        top = tops[position + 1]
        # What a harness does to see whether the token is the greedy one.
        is_greedy = value == max(top.values())
        assert is_greedy == (int(expected_TV[position].argmax()) == token)
    assert answer.text.startswith("def main(arguments):\n    return")
    assert [answer.text[offset:].startswith(token) for offset, token in zip(offsets, logprobs.tokens, strict=True)]
    assert answer.finish_reason in ("length", "stop")


def test_echo_alone_repeats_and_zero_tokens_only_score(client: OpenAI) -> None:
    echoed = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, echo=True, temperature=0)
    bare = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, temperature=0)
    assert echoed.choices[0].text == PROMPT + bare.choices[0].text
    scored = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=0, echo=True, logprobs=0)
    assert scored.choices[0].text == PROMPT
    assert scored.choices[0].logprobs is not None
    values = scored.choices[0].logprobs.token_logprobs
    assert values is not None
    assert values[0] is None and all(math.isfinite(value) for value in values[1:])
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0


def test_usage_says_how_many_tokens_were_guessed_ahead(client: OpenAI) -> None:
    def accepted(n: int, stream: bool) -> int | None:
        asked = client.completions.create(
            model="tiny",
            prompt=PROMPT,
            n=n,
            max_tokens=20,
            logit_bias={"65": 100},
            stream=stream,
            stream_options={"include_usage": True} if stream else openai.omit,
        )
        usage = list(asked)[-1].usage if isinstance(asked, openai.Stream) else asked.usage
        assert usage is not None and usage.completion_tokens == 20 * n
        assert usage.completion_tokens_details is not None
        return usage.completion_tokens_details.accepted_prediction_tokens

    for stream in (False, True):
        assert 8 < (accepted(1, stream) or 0) < 20, "the same token over and over is easy to guess"
        assert accepted(2, stream) == 0, "several answers are not guessed"


def test_many_prompts_are_answered_in_their_order(client: OpenAI) -> None:
    prompts = ["def ", "class ", "return "]
    together = client.completions.create(model="tiny", prompt=prompts, max_tokens=6, temperature=0)
    singly = [client.completions.create(model="tiny", prompt=one, max_tokens=6, temperature=0) for one in prompts]
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in singly]
    streamed = ["", "", ""]
    for chunk in client.completions.create(model="tiny", prompt=prompts, max_tokens=6, temperature=0, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in together.choices]


def test_sampling_settings_reach_the_choice_of_tokens(client: OpenAI) -> None:
    greedy = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=10, temperature=0).choices[0].text
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        text = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=10, extra_body=extra).choices[0].text
        assert text == greedy
    assert client.completions.create(model="tiny", prompt=PROMPT, max_tokens=10, top_p=1e-9).choices[0].text == greedy
    forced = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3, logit_bias={"65": 100})
    assert len(set(forced.choices[0].text)) == 1


@pytest.mark.parametrize(
    ("ask", "error", "sentence"),
    [
        ({"model": "other"}, openai.NotFoundError, "There is no model other here; there is tiny, tiny-base, tools."),
        ({"temperature": -1}, openai.BadRequestError, "temperature: Input should be greater than or equal to 0"),
        ({"prompt": "x" * 25_000}, openai.BadRequestError, "takes at most 20000 tokens of prompt and answer together"),
        ({"prompt": [5, 99999]}, openai.BadRequestError, "Token 99999 is not in the vocabulary"),
        ({"prompt": ""}, openai.BadRequestError, "The prompt is empty"),
        ({"prompt": []}, openai.BadRequestError, "prompt is empty"),
        ({"best_of": 3}, openai.BadRequestError, "best_of is not supported"),
        ({"logit_bias": {"99999": 1}}, openai.BadRequestError, "logit_bias names token 99999"),
        ({"stop": ["x"] * 17}, openai.BadRequestError, "at most 16 stop strings"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_sentence(
    client: OpenAI, ask: dict[str, object], error: type[openai.APIStatusError], sentence: str
) -> None:
    for stream in (False, True):
        with pytest.raises(error) as caught:
            client.completions.create(**({"model": "tiny", "prompt": "def", "stream": stream} | ask))  # pyright: ignore[reportCallIssue, reportArgumentType]
        assert isinstance(caught.value.body, dict)
        assert sentence in caught.value.body["message"]


def test_a_model_without_chat_template_says_what_to_do(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tiny-base has no chat template: use /v1/completions"):
        client.chat.completions.create(model="tiny-base", messages=[{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function: Field required"),
        ({"tools": [TOOL]}, "The chat template of tiny knows no tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "is not among the tools"),
        ({"tool_choice": "required"}, "tool_choice needs tools"),
        ({"functions": [{"name": "f"}]}, "functions are not supported; give them as tools"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "tools or a response_format of JSON, not both"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "banana"}}}},
            "cannot be kept to this schema: Invalid type: banana",
        ),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
    ],
)
def test_chat_settings_that_cannot_be_honoured_are_refused(
    client: OpenAI, extra: dict[str, object], sentence: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=sentence):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello"}], extra_body=extra)
