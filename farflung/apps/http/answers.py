"""The JSON of answers: whole ones and the chunks of streams, for chats and for completions."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from farflung.apps.http.spelling import Spelling
from farflung.model.generator import ScoredToken

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Header:
    """What every part of one answer repeats."""

    kind: str
    """The `object` of the whole answer."""
    model: str
    prefix: str
    id: str
    created_seconds: int = field(default_factory=lambda: int(time.time()))

    def around(self, choices: Sequence[Json], *, kind: str | None = None) -> Json:
        """A whole answer or chunk with these choices."""
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": kind or self.kind,
            "created": self.created_seconds,
            "model": self.model,
            "choices": list(choices),
        }


@dataclass(slots=True)
class Gathered:
    """One choice as its pieces come in."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list[ScoredToken])
    finish_reason: str | None = None

    def add(self, text: str, tokens: Sequence[ScoredToken], finish_reason: str | None) -> None:
        """Append more of it."""
        self.text += text
        self.tokens += tokens
        self.finish_reason = finish_reason


def usage(num_prompt_tokens: int, num_answer_tokens: int, num_guessed_tokens: int) -> Json:
    """The `usage` of an answer, some of whose tokens may have been guessed ahead."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_answer_tokens,
        "total_tokens": num_prompt_tokens + num_answer_tokens,
        "completion_tokens_details": {"accepted_prediction_tokens": num_guessed_tokens},
    }


def chat_logprobs(tokens: Sequence[ScoredToken], spelling: Spelling) -> Json:
    """The `logprobs` of a chat choice."""

    def entry(token: int, value: float | None) -> Json:
        return {"token": spelling.text_of(token), "logprob": value, "bytes": list(spelling.bytes_of(token))}

    content = [
        entry(scored.token, scored.log_probability)
        | {"top_logprobs": [entry(token, value) for token, value in scored.alternatives]}
        for scored in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[ScoredToken], spelling: Spelling, offset: int) -> Json:
    """The `logprobs` of a completion choice; `offset` is where in its text the first token begins."""
    offsets: list[int] = []
    for scored in tokens:
        offsets.append(offset)
        offset += spelling.num_characters_of(scored.token)
    return {
        "tokens": [spelling.text_of(scored.token) for scored in tokens],
        "token_logprobs": [scored.log_probability for scored in tokens],
        "top_logprobs": [_alternatives(scored, spelling) for scored in tokens],
        "text_offset": offsets,
    }


def _alternatives(scored: ScoredToken, spelling: Spelling) -> dict[str, float] | None:
    """Most likely tokens by their text; the token itself is among them even when it is not likely."""
    if scored.log_probability is None:
        return None
    listed: dict[str, float] = {}
    for token, value in (*scored.alternatives, (scored.token, scored.log_probability)):
        listed.setdefault(spelling.text_of(token), value)
    return listed
