"""Models that one may chat with: opened when they are first asked, through the same engine as the HTTP interface."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from farflung.apps.api import make_engines
from farflung.apps.dashboard.chat_view import AnswerView, Exchange, HopView, messages_of
from farflung.apps.drafting import OFF
from farflung.apps.http.engine import Engine, EngineLimits, Piece
from farflung.apps.http.errors import ApiError
from farflung.apps.http.metrics import Metrics
from farflung.apps.http.prompts import chat_prompt, completion_prompt, room_for_answer, tokens_of_prompt
from farflung.apps.library import ConnectedModel, connect_model, session_watcher
from farflung.apps.wiring import Connection
from farflung.model.generator import GenerationRequest
from farflung.model.source import ModelSource
from farflung.systems.swarm.session import Session

FOLLOW_SECONDS = 0.25
"""How often the route of an answer is looked at."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that answers."""

    engine: Engine
    connected: ConnectedModel


class ChatModels:
    """All models of one dashboard, for all its viewers."""

    def __init__(self, named: Sequence[str], connection: Connection) -> None:
        """`named`: folders or Hub ids; none: what servers of the swarm announce.

        Raises:
            ValueError: one of those named cannot be opened.
        """
        self._connection = connection
        self._sources = {source.name: source for source in (ModelSource.open(name) for name in named)}
        self.names = tuple(self._sources)
        self._opened: dict[str, Opened] = {}
        self._opening = asyncio.Lock()
        self._metrics = Metrics()
        self.waiting = ("", 0.0)
        """What a session waits for, and the monotonic second at which that was said."""

    async def answer(self, name: str, exchanges: Sequence[Exchange], num_tokens_max: int) -> None:
        """Let the model write the last answer; returns when it is over, however it ends.

        To be called in a task of its own, which is cancelled to stop it.
        """
        answer = exchanges[-1].answer
        try:
            opened = await self._open(name)
            request = await asyncio.to_thread(_request, opened.engine, exchanges, num_tokens_max)
            await self._write(opened, request, answer)
        except asyncio.CancelledError:
            answer.is_stopped = True
            raise
        except ApiError as error:
            answer.failure = error.message
        except ValueError as error:
            answer.failure = str(error)
        finally:
            answer.is_over = True

    async def _write(self, opened: Opened, request: GenerationRequest, answer: AnswerView) -> None:
        sessions: list[Session] = []
        session_watcher.set(sessions.append)  # of this task alone
        follower = asyncio.create_task(self._follow(sessions, answer))
        steps: AsyncGenerator[object] = opened.engine.answer(request, (), self._metrics)
        try:
            async with aclosing(steps):
                async for step in steps:
                    assert isinstance(step, Piece), "a chat never scores its prompt"
                    answer.take(step.text, len(step.tokens), time.monotonic())
        finally:
            follower.cancel()

    async def _follow(self, sessions: Sequence[Session], answer: AnswerView) -> None:
        while True:
            if sessions:
                answer.follow(await asyncio.to_thread(self._connection.bridge.call, lambda: _route(sessions[-1])))
            await asyncio.sleep(FOLLOW_SECONDS)

    async def _open(self, name: str) -> Opened:
        async with self._opening:
            if name not in self._opened:
                self._opened[name] = await asyncio.to_thread(self._load, name)
            return self._opened[name]

    def _load(self, name: str) -> Opened:
        try:
            source = self._sources.get(name) or ModelSource.open(name)
        except ValueError as error:
            raise ValueError(
                f"the part of {name} that runs here cannot be opened by that name ({error}): start the dashboard with "
                "its folder, as in `farflung dashboard FOLDER`"
            ) from None
        connected = connect_model(source, self._connection, on_wait=self._hear_waiting)
        engines = make_engines(connected, EngineLimits(), OFF)
        return Opened(engines[connected.source.name], connected)

    def _hear_waiting(self, sentence: str, seconds_left: float) -> None:
        self.waiting = (f"{sentence} Waits {seconds_left:.0f} s more.", time.monotonic())


def _route(session: Session) -> tuple[HopView, ...]:
    return tuple(HopView(link.peer, link.first, link.last) for link in session.chain.links)


def _request(engine: Engine, exchanges: Sequence[Exchange], num_tokens_max: int) -> GenerationRequest:
    """A model without a chat template goes on with what was last written."""
    if engine.tokenizer.chat_template is None:
        prompt = completion_prompt(engine, exchanges[-1].question)
    else:
        prompt = tokens_of_prompt(engine, chat_prompt(engine, messages_of(exchanges)))
    return GenerationRequest(
        prompt=prompt,
        num_tokens_max=room_for_answer(engine, len(prompt), num_tokens_max),
        sampling=engine.defaults,
        seed=secrets.randbits(31),
        stop_tokens=engine.stop_tokens,
    )
