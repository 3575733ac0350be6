"""The page *Chat*: questions and answers as they come, with their route and speed; stop, and ask again."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from html import escape
from typing import Protocol

from nicegui import background_tasks, ui

from farflung.apps.dashboard.chat_view import AnswerView, Exchange
from farflung.apps.dashboard.live import Live

NUM_TOKENS_DEFAULT, NUM_TOKENS_MAX = 512, 100_000
WAITING_SECONDS = 1.0
"""What was waited for longer ago is over."""


class Answers(Protocol):
    """Whoever lets models write."""

    names: tuple[str, ...]
    """Models that were named when it was opened."""
    waiting: tuple[str, float]
    """What a session waits for, and the monotonic second at which that was said."""

    def answer(self, name: str, exchanges: Sequence[Exchange], num_tokens_max: int) -> Awaitable[None]:
        """Let a model write the last answer."""
        ...


class ChatPage:
    """One viewer's conversation. Made within an element of the page; `show` brings it up to date."""

    def __init__(self, open_answers: Callable[[], Awaitable[Answers]]) -> None:
        """`open_answers` may take a while when it is first called."""
        self._open_answers = open_answers
        self._answers: Answers | None = None
        self._exchanges: list[Exchange] = []
        self._shown: list[_ShownExchange] = []
        self._writing: asyncio.Task[None] | None = None
        with ui.row().classes("w-full items-center"):
            self._model = ui.select([], label="model").props("dense outlined").style("min-width: 160px")
            self._num_tokens = ui.number(
                "tokens at most", value=NUM_TOKENS_DEFAULT, min=1, max=NUM_TOKENS_MAX, precision=0
            )
            self._num_tokens.props("dense outlined").style("width: 130px")
            self._new = ui.button("New conversation", on_click=self._begin_anew).props("flat no-caps dense")
        self._conversation = ui.element("div").classes("panel")
        self._notice = Live(ui.element("div"), _draw_notice)
        with ui.element("div").classes("card"), ui.row().classes("w-full items-end no-wrap"):
            self._question = ui.textarea(placeholder="Ask something").props("autogrow dense borderless rows=1")
            self._question.classes("grow").on("keydown.enter.exact.prevent", self._send)
            self._send_button = ui.button(icon="send", on_click=self._send).props('round dense aria-label="send"')
            self._stop_button = ui.button(icon="stop", on_click=self._stop).props('round dense aria-label="stop"')
            self._again_button = ui.button(icon="refresh", on_click=self._regenerate)
            self._again_button.props('round dense flat aria-label="answer again"')
        ui.context.client.on_delete(self._stop)

    @property
    def _is_writing(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def show(self, names: Sequence[str]) -> None:
        """Bring it up to date; `names`: models that may be asked."""
        if list(names) != self._model.options:
            chosen = self._model.value if self._model.value in names else next(iter(names), None)
            self._model.set_options(list(names), value=chosen)
        self._send_button.set_visibility(not self._is_writing)
        self._stop_button.set_visibility(self._is_writing)
        self._again_button.set_visibility(bool(self._exchanges) and not self._is_writing)
        for shown in self._shown[-1:]:
            shown.show()
        self._notice.show(self._notice_now(names))

    def _notice_now(self, names: Sequence[str]) -> str:
        if not names:
            return "No server announces a model yet."
        if self._is_writing and self._answers is None:
            return "Loads what runs here of the model."
        sentence, said_at = self._answers.waiting if self._answers is not None else ("", 0.0)
        return sentence if self._is_writing and time.monotonic() - said_at < WAITING_SECONDS else ""

    def _send(self) -> None:
        question = (self._question.value or "").strip()
        if not question or self._is_writing or not self._model.value:
            return
        self._question.set_value("")
        self._exchanges.append(Exchange(question))
        with self._conversation:
            self._shown.append(_ShownExchange(self._exchanges[-1]))
        self._write()

    def _regenerate(self) -> None:
        if not self._exchanges or self._is_writing:
            return
        self._exchanges[-1].answer = AnswerView()
        self._write()

    def _write(self) -> None:
        self._writing = background_tasks.create(self._answer(str(self._model.value)), name="chat answer")

    async def _answer(self, name: str) -> None:
        if self._answers is None:
            self._answers = await self._open_answers()
        await self._answers.answer(name, self._exchanges, int(self._num_tokens.value or NUM_TOKENS_DEFAULT))

    def _stop(self) -> None:
        if self._writing is not None:
            self._writing.cancel()

    def _begin_anew(self) -> None:
        self._stop()
        self._exchanges.clear()
        self._shown.clear()
        self._conversation.clear()


class _ShownExchange:
    """A question and its answer on the page."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        ui.label(exchange.question).classes("card said mine")
        with ui.element("div").classes("card answer"):
            self._text = ui.label().classes("said").mark("answer")
            self._incidents = Live(ui.element("div"), _draw_incidents)
            self._summary = ui.label().classes("soft mono")

    def show(self) -> None:
        """Bring it up to date."""
        answer = self._exchange.answer
        self._text.set_text(answer.text or ("" if answer.is_over else "…"))
        self._incidents.show((tuple(answer.incidents), answer.failure))
        self._summary.set_text(answer.summary if answer.num_tokens or answer.is_over else "")


def _draw_incidents(shown: tuple[tuple[str, ...], str]) -> None:
    incidents, failure = shown
    for sentence in incidents:
        ui.html(f'<div class="careful">{escape(sentence)}</div>', sanitize=False)
    if failure:
        ui.html(f'<div class="bad">{escape(failure)}</div>', sanitize=False)


def _draw_notice(sentence: str) -> None:
    if sentence:
        ui.label(sentence).classes("careful")
