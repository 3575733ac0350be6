"""POST /v1/chat/completions."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from farflung.apps.http.answers import Gathered, Header, Json, chat_logprobs, usage
from farflung.apps.http.engine import Engine, Piece
from farflung.apps.http.hanging_up import until_hang_up
from farflung.apps.http.metrics import Metrics
from farflung.apps.http.prompts import chat_prompt, room_for_answer
from farflung.apps.http.requests import generation_request
from farflung.apps.http.resuming import Streams
from farflung.apps.http.schema import ChatRequest
from farflung.apps.http.stream_names import Place
from farflung.model.generator import GenerationRequest, ScoredToken


class ChatAnswers:
    """One request and its answers."""

    def __init__(self, engine: Engine, asked: ChatRequest, metrics: Metrics, place: Place) -> None:
        self._engine = engine
        self._asked = asked
        self._metrics = metrics
        self._place = place
        self._header = Header("chat.completion", engine.name, "chatcmpl", place.name.answer)

    async def respond(self, request: Request, streams: Streams) -> Response:
        """Answer at once or as one of `streams`, as asked."""
        messages = [message.for_template() for message in self._asked.messages]
        prompt = await asyncio.to_thread(chat_prompt, self._engine, messages)
        num_tokens_max = room_for_answer(self._engine, len(prompt), self._asked.num_tokens_max)
        generation = generation_request(
            self._asked, self._engine, prompt, num_tokens_max, self._asked.num_alternatives or 0
        )
        if self._asked.stream:
            return await streams.answer(request, self._place, self._engine.name, lambda: self._chunks(generation))
        return JSONResponse(await until_hang_up(request, self._whole(generation)))

    async def _pieces(self, generation: GenerationRequest) -> AsyncGenerator[Piece]:
        steps = self._engine.answer(generation, self._asked.stop_strings, self._metrics)
        async with aclosing(steps):
            async for step in steps:
                assert isinstance(step, Piece), "a chat never scores its prompt"
                yield step

    async def _whole(self, generation: GenerationRequest) -> Json:
        gathered = [Gathered() for _ in range(self._asked.n)]
        num_guessed = 0
        async with aclosing(self._pieces(generation)) as pieces:
            async for piece in pieces:
                gathered[piece.row].add(piece.text, piece.tokens, piece.finish_reason)
                num_guessed += piece.num_guessed
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": one.text, "refusal": None},
                "logprobs": self._logprobs(one.tokens),
                "finish_reason": one.finish_reason,
            }
            for index, one in enumerate(gathered)
        ]
        num_tokens = sum(len(one.tokens) for one in gathered)
        return self._header.around(choices) | {"usage": usage(len(generation.prompt), num_tokens, num_guessed)}

    async def _chunks(self, generation: GenerationRequest) -> AsyncGenerator[Json]:
        num_tokens = num_guessed = 0
        is_begun = [False] * self._asked.n
        async with aclosing(self._pieces(generation)) as pieces:
            async for piece in pieces:
                num_tokens += len(piece.tokens)
                num_guessed += piece.num_guessed
                delta: dict[str, Any] = {} if is_begun[piece.row] else {"role": "assistant"}
                is_begun[piece.row] = True
                yield self._chunk(piece, delta | {"content": piece.text})
        if self._asked.includes_usage:
            last = self._header.around([], kind="chat.completion.chunk")
            yield last | {"usage": usage(len(generation.prompt), num_tokens, num_guessed)}

    def _chunk(self, piece: Piece, delta: dict[str, Any]) -> Json:
        choice = {
            "index": piece.row,
            "delta": delta,
            "logprobs": self._logprobs(piece.tokens),
            "finish_reason": piece.finish_reason,
        }
        chunk = self._header.around([choice], kind="chat.completion.chunk")
        return chunk | {"usage": None} if self._asked.includes_usage else chunk

    def _logprobs(self, tokens: list[ScoredToken] | tuple[ScoredToken, ...]) -> Json | None:
        return chat_logprobs(tokens, self._engine.spelling) if self._asked.logprobs else None
