"""POST /v1/completions: one or many prompts, as text or tokens; with `echo` and `logprobs` it scores them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from farflung.apps.http.answers import Gathered, Header, Json, completion_logprobs, usage
from farflung.apps.http.engine import Engine, Piece
from farflung.apps.http.hanging_up import until_hang_up
from farflung.apps.http.metrics import Metrics
from farflung.apps.http.prompts import completion_prompt, prompt_text, room_for_answer
from farflung.apps.http.requests import generation_request
from farflung.apps.http.resuming import Streams
from farflung.apps.http.routes import AnswerRoute
from farflung.apps.http.schema import CompletionRequest
from farflung.apps.http.spelling import Spelling
from farflung.apps.http.stream_names import Place
from farflung.model.generator import GenerationRequest, PromptScores, ScoredToken


@dataclass(frozen=True, slots=True)
class _Question:
    """One prompt of the request."""

    generation: GenerationRequest
    echo: str
    """Text that comes before the answer."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Text and tokens to add to one choice; `num_tokens` of them were generated, `num_guessed` of these ahead."""

    index: int
    text: str
    tokens: tuple[ScoredToken, ...]
    num_tokens: int
    finish_reason: str | None
    num_guessed: int = 0


class CompletionAnswers:
    """One request and its answers."""

    def __init__(self, engine: Engine, asked: CompletionRequest, metrics: Metrics, place: Place) -> None:
        self._engine = engine
        self._asked = asked
        self._metrics = metrics
        self._place = place
        self._route = AnswerRoute()
        self._header = Header("text_completion", engine.name, "cmpl", place.name.answer)

    async def respond(self, request: Request, streams: Streams) -> Response:
        """Answer at once or as one of `streams`, as asked."""
        questions = await asyncio.to_thread(lambda: [self._question(prompt) for prompt in self._asked.prompts])
        if self._asked.stream:
            write = partial(self._chunks, questions)
            return await streams.answer(request, self._place, self._engine.name, write, self._route.headers)
        answer = await until_hang_up(request, self._whole(questions))
        return JSONResponse(answer, headers=await self._route.headers())

    def _question(self, prompt: str | list[int]) -> _Question:
        tokens = completion_prompt(self._engine, prompt)
        num_tokens_max = room_for_answer(self._engine, len(tokens), self._asked.max_tokens)
        generation = generation_request(
            self._asked,
            self._engine,
            tokens,
            num_tokens_max,
            self._asked.logprobs or 0,
            scores_prompt=self._asked.echo and self._asked.logprobs is not None,
        )
        return _Question(generation, prompt_text(self._engine, prompt) if self._asked.echo else "")

    async def _parts(self, questions: list[_Question]) -> AsyncGenerator[_Part]:
        """The answers' parts, one prompt after the other."""
        for number, question in enumerate(questions):
            first = number * self._asked.n
            rows = range(first, first + self._asked.n)
            is_scored = question.generation.scores_prompt
            finish_reason = "length" if question.generation.num_tokens_max == 0 else None
            if self._asked.echo and not is_scored:
                for index in rows:
                    yield _Part(index, question.echo, (), 0, finish_reason)
            if finish_reason is not None and not is_scored:
                continue
            steps = self._engine.answer(question.generation, self._asked.stop_strings, self._metrics, route=self._route)
            async with aclosing(steps):
                async for step in steps:
                    if isinstance(step, PromptScores):
                        for index in rows:
                            yield _Part(index, question.echo, step.tokens, 0, finish_reason)
                    else:
                        yield _part_of(step, first)

    async def _whole(self, questions: list[_Question]) -> Json:
        gathered = [Gathered() for _ in range(self._asked.n * len(questions))]
        num_tokens = num_guessed = 0
        async with aclosing(self._parts(questions)) as parts:
            async for part in parts:
                gathered[part.index].add(part.text, part.tokens, part.finish_reason)
                num_tokens += part.num_tokens
                num_guessed += part.num_guessed
        choices = [
            self._choice(index, one.text, one.tokens, one.finish_reason, offset=0) for index, one in enumerate(gathered)
        ]
        told = usage(_num_prompt_tokens(questions), num_tokens, num_guessed)
        return self._header.around(choices) | {"usage": told} | await self._route.fields()

    async def _chunks(self, questions: list[_Question]) -> AsyncGenerator[Json]:
        offsets = [0] * (self._asked.n * len(questions))
        num_tokens = num_guessed = 0
        async with aclosing(self._parts(questions)) as parts:
            async for part in parts:
                num_tokens += part.num_tokens
                num_guessed += part.num_guessed
                choice = self._choice(
                    part.index, part.text, part.tokens, part.finish_reason, offset=offsets[part.index]
                )
                offsets[part.index] += len(part.text)
                chunk = self._header.around([choice])
                yield chunk | {"usage": None} if self._asked.includes_usage else chunk
        if self._asked.includes_usage:
            told = usage(_num_prompt_tokens(questions), num_tokens, num_guessed)
            yield self._header.around([]) | {"usage": told} | await self._route.fields()

    def _choice(
        self,
        index: int,
        text: str,
        tokens: list[ScoredToken] | tuple[ScoredToken, ...],
        finish_reason: str | None,
        *,
        offset: int,
    ) -> Json:
        spelling: Spelling = self._engine.spelling
        logprobs = None if self._asked.logprobs is None else completion_logprobs(tokens, spelling, offset)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _part_of(piece: Piece, first: int) -> _Part:
    index, num_tokens = first + piece.row, len(piece.tokens)
    return _Part(index, piece.text, piece.tokens, num_tokens, piece.finish_reason, piece.num_guessed)


def _num_prompt_tokens(questions: list[_Question]) -> int:
    return sum(len(question.generation.prompt) for question in questions)
