"""POST /v1/chat/completions."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from farflung.apps.http.answers import Gathered, Header, Json, chat_logprobs, usage
from farflung.apps.http.chat_schema import ChatRequest
from farflung.apps.http.engine import Engine, Piece
from farflung.apps.http.hanging_up import until_hang_up
from farflung.apps.http.metrics import Metrics
from farflung.apps.http.prompts import chat_prompt, room_for_answer, tokens_of_prompt
from farflung.apps.http.requests import chat_form, generation_request, known_format
from farflung.apps.http.resuming import Streams
from farflung.apps.http.routes import AnswerRoute
from farflung.apps.http.stream_names import Place
from farflung.apps.http.tool_calls import Found, ToolCall, ToolReader
from farflung.model.generator import GenerationRequest, ScoredToken


@dataclass(frozen=True, slots=True)
class _Question:
    """What is to be answered."""

    generation: GenerationRequest
    prompt: str
    shown_special_tokens: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some more of one answer."""

    row: int
    found: Found
    tokens: tuple[ScoredToken, ...]
    num_guessed: int
    first_call: int
    """The number of its first call in the answer."""
    finish_reason: str | None


class ChatAnswers:
    """One request and its answers."""

    def __init__(self, engine: Engine, asked: ChatRequest, metrics: Metrics, place: Place) -> None:
        self._engine = engine
        self._asked = asked
        self._metrics = metrics
        self._place = place
        self._route = AnswerRoute()
        self._header = Header("chat.completion", engine.name, "chatcmpl", place.name.answer)

    async def respond(self, request: Request, streams: Streams) -> Response:
        """Answer at once or as one of `streams`, as asked."""
        question = await asyncio.to_thread(self._question)
        if self._asked.stream:
            write = partial(self._chunks, question)
            return await streams.answer(request, self._place, self._engine.name, write, self._route.headers)
        answer = await until_hang_up(request, self._whole(question))
        return JSONResponse(answer, headers=await self._route.headers())

    def _question(self) -> _Question:
        asked, engine = self._asked, self._engine
        tools = [tool.for_template() for tool in asked.offered_tools]
        prompt = chat_prompt(engine, [message.for_template() for message in asked.messages], tools)
        tokens = tokens_of_prompt(engine, prompt)
        num_tokens_max = room_for_answer(engine, len(tokens), asked.num_tokens_max)
        generation = generation_request(
            asked, engine, tokens, num_tokens_max, asked.num_alternatives or 0, form=chat_form(asked, engine)
        )
        shown = known_format(engine).shown_tokens(engine.tokenizer) if tools else frozenset[int]()
        return _Question(generation, prompt, shown)

    async def _parts(self, question: _Question) -> AsyncGenerator[_Part]:
        readers = [self._reader(question, row) for row in range(self._asked.n)]
        steps = self._engine.answer(
            question.generation, self._asked.stop_strings, self._metrics, question.shown_special_tokens, self._route
        )
        async with aclosing(steps):
            async for piece in steps:
                assert isinstance(piece, Piece), "a chat never scores its prompt"
                yield _part(piece, readers[piece.row])

    def _reader(self, question: _Question, row: int) -> ToolReader | None:
        if not self._asked.offered_tools:
            return None
        tools = [tool.for_template() for tool in self._asked.offered_tools]
        name = f"{self._place.name.answer}{row}"
        return ToolReader(known_format(self._engine), question.prompt, tools, name)

    async def _whole(self, question: _Question) -> Json:
        answers = [_Answer() for _ in range(self._asked.n)]
        num_guessed = 0
        async with aclosing(self._parts(question)) as parts:
            async for part in parts:
                answers[part.row].add(part)
                num_guessed += part.num_guessed
        choices = [
            {
                "index": index,
                "message": one.message(),
                "logprobs": self._logprobs(one.said.tokens),
                "finish_reason": one.said.finish_reason,
            }
            for index, one in enumerate(answers)
        ]
        num_tokens = sum(len(one.said.tokens) for one in answers)
        told = usage(len(question.generation.prompt), num_tokens, num_guessed)
        return self._header.around(choices) | {"usage": told} | await self._route.fields()

    async def _chunks(self, question: _Question) -> AsyncGenerator[Json]:
        num_tokens = num_guessed = 0
        is_begun = [False] * self._asked.n
        async with aclosing(self._parts(question)) as parts:
            async for part in parts:
                num_tokens += len(part.tokens)
                num_guessed += part.num_guessed
                role = {} if is_begun[part.row] else {"role": "assistant"}
                is_begun[part.row] = True
                yield self._chunk(part, role | _delta(part))
        if self._asked.includes_usage:
            last = self._header.around([], kind="chat.completion.chunk")
            told = usage(len(question.generation.prompt), num_tokens, num_guessed)
            yield last | {"usage": told} | await self._route.fields()

    def _chunk(self, part: _Part, delta: Json) -> Json:
        choice = {
            "index": part.row,
            "delta": delta,
            "logprobs": self._logprobs(part.tokens),
            "finish_reason": part.finish_reason,
        }
        chunk = self._header.around([choice], kind="chat.completion.chunk")
        return chunk | {"usage": None} if self._asked.includes_usage else chunk

    def _logprobs(self, tokens: list[ScoredToken] | tuple[ScoredToken, ...]) -> Json | None:
        return chat_logprobs(tokens, self._engine.spelling) if self._asked.logprobs else None


class _Answer:
    """One whole answer, as its parts come in."""

    def __init__(self) -> None:
        self.said = Gathered()
        self._reasoning = ""
        self._calls: list[ToolCall] = []

    def add(self, part: _Part) -> None:
        """Append more of it."""
        self.said.add(part.found.content, part.tokens, part.finish_reason)
        self._reasoning += part.found.reasoning
        self._calls += part.found.calls

    def message(self) -> Json:
        """What the assistant said; no content when all it did was to call tools."""
        content = None if self._calls and not self.said.text else self.said.text
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message["tool_calls"] = [call.spelled() for call in self._calls]
        return message


def _part(piece: Piece, reader: ToolReader | None) -> _Part:
    if reader is None:
        return _Part(piece.row, Found(piece.text), piece.tokens, piece.num_guessed, 0, piece.finish_reason)
    first_call = reader.num_calls
    found = reader.push(piece.text)
    finish_reason: str | None = piece.finish_reason
    if piece.finish_reason is not None:
        found.add(reader.finish())
        finish_reason = "tool_calls" if reader.num_calls and piece.finish_reason == "stop" else piece.finish_reason
    return _Part(piece.row, found, piece.tokens, piece.num_guessed, first_call, finish_reason)


def _delta(part: _Part) -> Json:
    delta: Json = {}
    if part.found.reasoning:
        delta["reasoning_content"] = part.found.reasoning
    if part.found.content or not part.found.calls:
        delta["content"] = part.found.content
    if part.found.calls:
        delta["tool_calls"] = [
            {"index": part.first_call + number} | call.spelled() for number, call in enumerate(part.found.calls)
        ]
    return delta
