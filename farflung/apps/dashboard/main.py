"""The dashboard's process: a node of the swarm with a client's ticket, and a web server on this machine."""

import asyncio
from collections.abc import Sequence

import uvicorn
from fastapi import FastAPI
from nicegui import ui

from farflung.apps.dashboard import frame
from farflung.apps.dashboard.chat_page import Answers, ChatPage
from farflung.apps.dashboard.sources import SwarmSource
from farflung.apps.dashboard.swarm_page import SwarmPage
from farflung.apps.listening import bind
from farflung.apps.wiring import Connection

GRACE_SECONDS = 1


def serve_dashboard(named: Sequence[str], ticket: str, *, host: str, port: int) -> None:
    """Serve the pages until the process is told to stop; `named`: models to chat with, else all the swarm serves.

    Raises:
        ValueError: a port in use, a bad ticket, a named model that is none.
        FarflungError: nobody of the swarm answers.
    """
    listening = bind(host, port)
    with listening, Connection(ticket) as connection:
        swarm = SwarmSource(connection)
        answers = LazyAnswers(named, connection)
        tabs = [
            frame.Tab("Swarm", "/", lambda: _swarm(swarm)),
            frame.Tab("Chat", "/chat", lambda: _chat(swarm, answers), every_seconds=0.2),
        ]
        frame.install(swarm.name, {tab.name: tab for tab in tabs})
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        ui.run_with(app, title=frame.TITLE, dark=None, binding_refresh_interval=None, show_welcome_message=False)
        shown_host, shown_port = listening.getsockname()[:2]
        print(f"dashboard at http://{shown_host}:{shown_port}/", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS)
        uvicorn.Server(config).run(sockets=[listening])


class LazyAnswers:
    """The models one may chat with; torch and transformers are loaded when somebody asks first, or a model is named."""

    def __init__(self, named: Sequence[str], connection: Connection) -> None:
        """Raises ValueError: a named model cannot be opened."""
        self._named = named
        self._connection = connection
        self._models: Answers | None = None
        self._lock = asyncio.Lock()
        self.names = self._load().names if named else ()
        """Those that were named."""

    def _load(self) -> Answers:
        from farflung.apps.dashboard.chat_models import ChatModels

        self._models = ChatModels(self._named, self._connection)
        return self._models

    async def open(self) -> Answers:
        """Loaded at the first call."""
        async with self._lock:
            return self._models or await asyncio.to_thread(self._load)


def _chat(swarm: SwarmSource, answers: LazyAnswers) -> frame.Update:
    page = ChatPage(answers.open)

    async def update() -> None:
        announced = [model.name for model in (await swarm.picture()).models]
        page.show(list(answers.names or dict.fromkeys(announced)))

    return update


def _swarm(source: SwarmSource) -> frame.Update:
    page = SwarmPage()

    async def update() -> None:
        page.show(await source.picture())

    return update
