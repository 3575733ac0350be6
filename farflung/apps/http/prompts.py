"""From what a client wrote to tokens that fit the model."""

from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from farflung.apps.http.engine import Engine
from farflung.apps.http.errors import ApiError


def chat_prompt(engine: Engine, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    """A conversation as text, up to where the assistant is to speak.

    Raises:
        ApiError: 400 when the tokenizer has no chat template, its template refuses the conversation or knows no tools.
    """
    if engine.tokenizer.chat_template is None:
        raise ApiError(
            400,
            f"The tokenizer of {engine.name} has no chat template: use /v1/completions, or a model made for chats.",
            param="messages",
        )
    text = _from_template(engine.tokenizer, messages, tools or None)
    if tools and text == _from_template(engine.tokenizer, messages, None):
        raise ApiError(
            400,
            f"The chat template of {engine.name} knows no tools: describe them in a message, or take a model made for "
            "tools.",
            param="tools",
        )
    return text


def _from_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> str:
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)  # pyright: ignore[reportArgumentType]
    except (TemplateError, TypeError, ValueError) as error:
        raise ApiError(400, f"The chat template refuses these messages: {error}", param="messages") from None
    return str(text)


def tokens_of_prompt(engine: Engine, text: str) -> tuple[int, ...]:
    """The tokens of what a chat template wrote."""
    return _encode(engine.tokenizer, text, add_special_tokens=False)


def completion_prompt(engine: Engine, prompt: str | list[int]) -> tuple[int, ...]:
    """Tokens of a prompt given as text or as tokens; an empty text begins with the model's first token.

    Raises:
        ApiError: 400 for a token that is not in the vocabulary, and for an empty prompt without a first token.
    """
    if isinstance(prompt, str):
        tokens = _encode(engine.tokenizer, prompt, add_special_tokens=True)
    else:
        tokens = tuple(prompt)
        unknown = [token for token in tokens if token >= len(engine.tokenizer)]
        if unknown:
            sentence = f"Token {unknown[0]} is not in the vocabulary, which ends at {len(engine.tokenizer) - 1}."
            raise ApiError(400, sentence, param="prompt")
    if tokens:
        return tokens
    if engine.tokenizer.bos_token_id is None:
        raise ApiError(400, "The prompt is empty: give at least one token.", param="prompt")
    return (cast(int, engine.tokenizer.bos_token_id),)


def prompt_text(engine: Engine, prompt: str | list[int]) -> str:
    """What `echo` repeats."""
    if isinstance(prompt, str):
        return prompt
    text = engine.tokenizer.decode(prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def room_for_answer(engine: Engine, num_prompt_tokens: int, num_tokens_max: int | None) -> int:
    """How many tokens may follow: what was asked for, as far as the context goes.

    Raises:
        ApiError: 400 when the prompt alone is longer than the context, or fills it and tokens were asked for.
    """
    room = engine.context_length_max - num_prompt_tokens
    if room < 0 or (room == 0 and num_tokens_max != 0):
        raise ApiError(
            400,
            f"The prompt has {num_prompt_tokens} tokens, but {engine.name} takes at most {engine.context_length_max} "
            "tokens of prompt and answer together: shorten the prompt.",
            code="context_length_exceeded",
        )
    return room if num_tokens_max is None else min(room, num_tokens_max)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    tokens = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return tuple(cast(list[int], tokens))
