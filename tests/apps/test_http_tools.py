"""Tools and JSON through the real openai client: calls are found, forms are kept, drafts or not."""

import json
import sys
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.chat_completion_message_function_tool_call import (
    ChatCompletionMessageFunctionToolCall as ChatCompletionMessageToolCall,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from farflung.apps.http.errors import ApiError
from farflung.apps.http.guiding import Forms
from farflung.apps.http.tool_calls import Found, ToolReader
from farflung.apps.http.tool_formats import HERMES, LLAMA, MISTRAL, XML, ToolFormat, format_of
from tests.apps.tool_model import CALL, CALLING, QUESTION, SAYING, WEATHER

pytestmark = pytest.mark.loopback

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["far", "near"]}, "minItems": 2, "maxItems": 3},
        "size": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "tags", "size"],
    "additionalProperties": False,
}
ASKED: Any = {"model": "tools", "messages": [QUESTION], "tools": [WEATHER], "temperature": 0, "max_tokens": 120}
SPELLED = json.dumps(CALL)
STRICT = WEATHER | {"function": {**WEATHER["function"], "strict": True}}


def only_call(message: ChatCompletionMessage) -> ChatCompletionMessageToolCall:
    assert message.tool_calls is not None and len(message.tool_calls) == 1
    call = message.tool_calls[0]
    assert call.type == "function"
    return call


def test_a_model_calls_a_tool_and_says_what_it_returned(client: OpenAI) -> None:
    first = client.chat.completions.create(**ASKED).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.content == "I look."
    call = only_call(first.message)
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    said = [QUESTION, first.message.model_dump(exclude_none=True, exclude={"content"})]
    returned = {"role": "tool", "tool_call_id": call.id, "content": "warm"}
    second = client.chat.completions.create(**ASKED | {"messages": [*said, returned]}).choices[0]
    assert (second.message.content, second.finish_reason, second.message.tool_calls) == (SAYING, "stop", None)


def test_a_stream_brings_the_same_call(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "I look."
    (call,) = [call for delta in deltas for call in delta.tool_calls or ()]
    assert call.index == 0 and call.function is not None and call.function.arguments is not None
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tools_that_must_not_be_called_are_not_shown(client: OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED, tool_choice="none").choices[0]
    alone = client.chat.completions.create(**{key: ASKED[key] for key in ASKED if key != "tools"}).choices[0]
    assert answer.message == alone.message and answer.message.tool_calls is None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_an_answer_can_be_made_to_call(client: OpenAI, choice: Any) -> None:
    for seed in range(3):
        hot = ASKED | {"temperature": 3, "seed": seed, "n": 2, "parallel_tool_calls": False, "max_tokens": 400}
        for one in client.chat.completions.create(**hot, tool_choice=choice).choices:
            assert one.finish_reason == "tool_calls" and one.message.content is None
            jsonschema.validate(
                json.loads(only_call(one.message).function.arguments), WEATHER["function"]["parameters"]
            )


def test_the_arguments_of_strict_tools_are_valid_in_free_text(client: OpenAI) -> None:
    rome = client.chat.completions.create(**ASKED | {"tools": [STRICT]}).choices[0]
    assert rome.message.content == "I look."
    narrow = json.loads(json.dumps(STRICT))
    narrow["function"]["parameters"]["properties"]["city"]["enum"] = ["Oslo"]
    oslo = client.chat.completions.create(**ASKED | {"tools": [narrow]}).choices[0]
    assert json.loads(only_call(oslo.message).function.arguments)["city"] == "Oslo"


@pytest.mark.parametrize("n", [1, 2], ids=["guessing ahead", "without"])
def test_answers_are_json_of_their_schema(client: OpenAI, n: int) -> None:
    asked: Any = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "def "}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}},
        "max_tokens": 500,
        "n": n,
        "seed": 3,
    }
    answer = client.chat.completions.create(**asked)
    for one in answer.choices:
        assert one.finish_reason == "stop"
        jsonschema.validate(json.loads(one.message.content or ""), SCHEMA)
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    num_guessed = answer.usage.completion_tokens_details.accepted_prediction_tokens or 0
    assert (num_guessed > 10) == (n == 1), "what the schema forces is guessed"
    streamed = ["", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed[:n] == [one.message.content for one in answer.choices]
    alone = client.chat.completions.create(**asked | {"n": 1}).choices[0]
    assert alone.message.content == answer.choices[0].message.content, "guesses change nothing"


def test_any_json_object_is_an_object(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "def "}],
        response_format={"type": "json_object"},
        max_tokens=400,
        temperature=0,
        logit_bias={"2": -100},
    )
    text = answer.choices[0].message.content or ""
    assert text.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_tools_and_calls_that_make_no_sense_are_refused(client: OpenAI) -> None:
    spoiled = {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}],
    }
    with pytest.raises(openai.BadRequestError, match="arguments of each call must be a JSON object"):
        client.chat.completions.create(**ASKED | {"messages": [QUESTION, spoiled]})
    named = {"type": "function", "function": {"name": "a b"}}
    with pytest.raises(openai.BadRequestError, match=r"tools.0.function.name"):
        client.chat.completions.create(**ASKED | {"tools": [named]})


def test_without_llguidance_the_extra_is_named(
    tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    with pytest.raises(ApiError, match=r"pip install 'farflung\[guided\]'"):
        Forms(tiny_tokenizer, [0]).of_schema({})


def read(format: ToolFormat, text: str, length: int) -> tuple[str, list[Any]]:
    """What a reader finds in a text that comes in pieces of this length."""
    reader = ToolReader(format, "", [], "x")
    found = Found()
    for start in range(0, len(text), length):
        found.add(reader.push(text[start : start + length]))
    found.add(reader.finish())
    return found.content, [{"name": call.name, "arguments": json.loads(call.arguments)} for call in found.calls]


@pytest.mark.parametrize("length", [1, 3, 1000])
@pytest.mark.parametrize(
    ("format", "text", "content", "num_calls"),
    [
        (HERMES, CALLING, "I look.", 1),
        (
            HERMES,
            "<tool_call>" + json.dumps(CALL) + "</tool_call>\n<tool_call>" + json.dumps(CALL) + "</tool_call>",
            "",
            2,
        ),
        (HERMES, 'so <tool_call>{"name": 1,</tool_call> and', 'so<tool_call>{"name": 1,</tool_call> and', 0),
        (HERMES, 'so <tool_call>{"na', 'so<tool_call>{"na', 0),
        (LLAMA, '{"name": "weather", "parameters": {"city": "Rome"}}', "", 1),
        (LLAMA, '<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}', "", 1),
        (LLAMA, '{"answer": 1} it is', '{"answer": 1} it is', 0),
        (LLAMA, 'Well: {"name": "weather"}', 'Well: {"name": "weather"}', 0),
        (MISTRAL, f"[TOOL_CALLS][{SPELLED}, {SPELLED}]", "", 2),
        (
            XML,
            "<tool_call><function=weather>\n<parameter=city>\nRome\n</parameter></function></tool_call>",
            "",
            1,
        ),
    ],
)
def test_calls_are_found_in_every_format(
    format: ToolFormat, text: str, content: str, num_calls: int, length: int
) -> None:
    assert read(format, text, length) == (content, [CALL] * num_calls)


@pytest.mark.parametrize(
    ("template", "format"),
    [
        ("...<tool_call>\n...", HERMES),
        ("<tool_call>\n<function=...", XML),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", MISTRAL),
        ('{"name": function name, "parameters": ...} Environment: ipython', LLAMA),
        ("{{ messages }}", None),
    ],
)
def test_the_format_shows_in_the_chat_template(
    tiny_tokenizer: PreTrainedTokenizerBase, template: str, format: ToolFormat | None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path)
    tokenizer.chat_template = template
    assert format_of(tokenizer) is format


def test_special_tokens_of_the_format_are_read(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|python_tag|>", "<|other|>"]})
    (shown,) = LLAMA.shown_tokens(tokenizer)
    assert tokenizer.convert_ids_to_tokens(shown) == "<|python_tag|>"
