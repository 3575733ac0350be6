"""One served model: takes requests in turn, runs each in a thread of its own, and hands its text to the event loop.

    event loop:  answer() -> wait for a slot -> start thread ... await pieces ... close -> cancel
    thread:      generator.stream() -> tokens -> text, stop strings -> pieces

The model's forward blocks, so it never runs on the event loop. Whoever stops listening sets `cancelled`; the thread
looks at it between two tokens, closes the generator's stream, which frees the session's cache, and gives the slot back.
"""

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from farflung.apps.http.errors import ApiError, from_failure
from farflung.apps.http.guiding import Forms
from farflung.apps.http.metrics import AnswerWatch, Metrics
from farflung.apps.http.routes import AnswerRoute, Reporter
from farflung.apps.http.spelling import Spelling
from farflung.apps.http.tool_formats import format_of
from farflung.model.embedding import HiddenStates, Pooling, embed
from farflung.model.generator import FinishReason, GeneratedToken, GenerationRequest, PromptScores, ScoredToken
from farflung.model.generator import Generator as TokenGenerator
from farflung.model.sample import Sampling
from farflung.model.tokens import StopStrings, TextStream
from farflung.world.errors import FarflungError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How much one model does at a time."""

    num_running_max: int = 8
    """Answers being written at once; each holds a session and its cache."""
    num_waiting_max: int = 32
    """Requests waiting for their turn; further ones are told to come back later."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more text of one row, with the tokens that it took (text may still be held back when tokens come)."""

    row: int
    text: str
    tokens: tuple[ScoredToken, ...]
    finish_reason: FinishReason | None
    num_guessed: int = 0
    """Of the tokens, those that had been guessed ahead."""


Step = PromptScores | Piece


@dataclass(slots=True)
class _Row:
    stream: TextStream
    stop: StopStrings
    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list[ScoredToken])
    num_guessed: int = 0

    def push(self, token: int) -> bool:
        self.text += self.stop.push(self.stream.push(token))
        return self.stop.is_complete

    def take(self, generated: GeneratedToken) -> Piece | None:
        self.tokens.append(generated.scored)
        self.num_guessed += generated.is_guessed
        if generated.finish_reason is not None and not self.stop.is_complete:
            self.text += self.stop.push(self.stream.finish())
            self.text += self.stop.finish()
        if not self.text and generated.finish_reason is None:
            return None
        piece = Piece(generated.row, self.text, tuple(self.tokens), generated.finish_reason, self.num_guessed)
        self.text, self.tokens, self.num_guessed = "", [], 0
        return piece


class Engine:
    """A model under a name, its tokenizer, and the queue before it."""

    def __init__(
        self,
        name: str,
        generator: TokenGenerator,
        tokenizer: PreTrainedTokenizerBase,
        *,
        defaults: Sampling | None = None,
        stop_tokens: tuple[int, ...] = (),
        limits: EngineLimits | None = None,
        why_unavailable: Callable[[], str | None] = lambda: None,
        weights: str = "",
        hidden_states: HiddenStates | None = None,
        watch_route: Callable[[], Reporter] | None = None,
    ) -> None:
        """`weights`: their fingerprint, if there may be several under one name; `hidden_states`: for embeddings;
        `watch_route` is called in the context of each answer before it begins."""
        self.name = name
        self.tokenizer = tokenizer
        self.spelling = Spelling(tokenizer)
        self.forms = Forms(tokenizer, stop_tokens)
        self.tool_format = format_of(tokenizer)
        self.defaults = defaults or Sampling()
        self.stop_tokens = stop_tokens
        self.created_seconds = int(time.time())
        self.weights = weights
        self.spare: Callable[[], bool] = lambda: False
        """Called when all answers that may be written at once are: whether one of them can wait, and ends now."""
        self.why_unavailable = why_unavailable
        """A sentence when the model cannot answer now (no server holds some block), else None."""
        self._generator = generator
        self._hidden_states = hidden_states
        self._watch_route = watch_route
        self._limits = limits or EngineLimits()
        self._num_waiting = 0
        self._slots = asyncio.Semaphore(self._limits.num_running_max)
        self._cancels: list[threading.Event] = []

    @property
    def context_length_max(self) -> int:
        """Tokens of prompt and answer together."""
        return self._generator.context_length_max

    async def answer(
        self,
        request: GenerationRequest,
        stop_strings: tuple[str, ...],
        metrics: Metrics,
        shown_special_tokens: frozenset[int] = frozenset(),
        route: AnswerRoute | None = None,
    ) -> AsyncGenerator[Step]:
        """The steps of one answer; close the generator to give it up. Special tokens have no text but for those shown.
        `route` is told how to look at the route of the answer.

        Raises:
            ApiError: 429 when too many wait, 503 when the machines behind the model cannot answer, 400 for a request
                that the generator refuses.
        """
        await self._wait_for_slot(metrics)
        watch = metrics.watch(self.name, len(request.prompt))
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[Step | Exception | None] = asyncio.Queue()
        cancelled = threading.Event()
        self._cancels.append(cancelled)
        rows = [
            _Row(TextStream(self.tokenizer, request.prompt, shown_special_tokens), StopStrings(stop_strings))
            for _ in range(request.num_rows)
        ]

        def tell(step: Step | Exception | None) -> None:
            loop.call_soon_threadsafe(steps.put_nowait, step)

        def ended() -> None:
            watch.end()
            self._cancels.remove(cancelled)
            self._slots.release()

        def work() -> None:
            try:
                self._generate(request, rows, watch, cancelled, tell)
                tell(None)
            except (ValueError, FarflungError) as error:
                tell(from_failure(error))
            except Exception as error:  # noqa: BLE001 - the thread's only way to tell the event loop that we failed
                tell(error)
            finally:
                loop.call_soon_threadsafe(ended)

        context = contextvars.copy_context()  # whoever asks may watch what is opened for the answer
        if route is not None and self._watch_route is not None:
            route.report = context.run(self._watch_route)
        threading.Thread(target=context.run, args=(work,), name=f"answer-{self.name}", daemon=True).start()
        try:
            while (step := await steps.get()) is not None:
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            cancelled.set()

    @asynccontextmanager
    async def turn(self, metrics: Metrics) -> AsyncGenerator[None]:
        """Wait for a place among the answers that are written at once, and hold it.

        Raises:
            ApiError: 429 when too many wait.
        """
        await self._wait_for_slot(metrics)
        try:
            yield
        finally:
            self._slots.release()

    def embed(self, texts: Sequence[Sequence[int]], pooling: Pooling, is_cancelled: Callable[[], bool]) -> torch.Tensor:
        """A vector for each text, (texts, hidden size); takes a while, and may be cancelled between two batches.

        Raises:
            ApiError: 400 when the model gives none, 503 when the machines behind it cannot answer.
        """
        if self._hidden_states is None:
            raise ApiError(400, f"{self.name} gives no embeddings here.", param="model")
        vectors: dict[int, torch.Tensor] = {}
        try:
            for numbers, vectors_NH in embed(texts, self._hidden_states, pooling):
                vectors |= zip(numbers, vectors_NH, strict=True)
                if is_cancelled():
                    raise ApiError(499, "The client hung up.")
        except (ValueError, FarflungError) as error:
            raise from_failure(error) from None
        return torch.stack([vectors[number] for number in range(len(texts))])

    def cancel_all(self) -> None:
        """Give up every answer that is being written."""
        for cancelled in self._cancels:
            cancelled.set()

    async def _wait_for_slot(self, metrics: Metrics) -> None:
        is_full = self._slots.locked() and not self.spare()
        if is_full and self._num_waiting >= self._limits.num_waiting_max:
            raise ApiError(
                429,
                f"{self._limits.num_running_max} answers are being written and {self._num_waiting} requests wait: "
                "try again in a moment.",
                code="busy",
                retry_after_seconds=1 + self._num_waiting / self._limits.num_running_max,
            )
        self._num_waiting += 1
        metrics.count_waiting(self.name, 1)
        try:
            await self._slots.acquire()
        finally:
            self._num_waiting -= 1
            metrics.count_waiting(self.name, -1)

    def _generate(
        self,
        request: GenerationRequest,
        rows: list[_Row],
        watch: AnswerWatch,
        cancelled: threading.Event,
        tell: Callable[[Step], None],
    ) -> None:
        stream = self._generator.stream(request, lambda row, token: rows[row].push(token))
        with closing(cast(Generator[PromptScores | GeneratedToken], stream)):
            for step in stream:
                if cancelled.is_set():
                    return
                if isinstance(step, PromptScores):
                    tell(step)
                    continue
                watch.token(step.row)
                piece = rows[step.row].take(step)
                if piece is not None:
                    tell(piece)
