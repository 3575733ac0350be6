"""The dashboard's process: a node of the swarm and a web server on this machine."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from farflung.apps.dashboard import frame
from farflung.apps.dashboard.chat_page import Answers, ChatPage
from farflung.apps.dashboard.events_page import EventsPage
from farflung.apps.dashboard.events_view import shown
from farflung.apps.dashboard.invite_page import InvitePage
from farflung.apps.dashboard.invite_source import InviteSource
from farflung.apps.dashboard.runs_page import RunsPage
from farflung.apps.dashboard.runs_view import curves, view_of
from farflung.apps.dashboard.sources import EventSource, RunSource, SwarmSource
from farflung.apps.dashboard.swarm_page import SwarmPage
from farflung.apps.listening import bind
from farflung.apps.wiring import Connection

GRACE_SECONDS = 1
OWN_NAMES = ["127.0.0.1", "localhost", "[::1]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for."""

    ticket: str | None
    """None: no swarm, runs alone."""
    host: str
    port: int
    models: Sequence[str] = ()
    """To chat with; none: all that the swarm serves."""
    runs: Sequence[Path] = ()
    """Folders of runs to show beside those that this user has led here."""


def serve_dashboard(wish: Wish) -> None:
    """Serve the pages until the process is told to stop.

    Raises:
        ValueError: a port in use, a bad ticket, a named model or run that is none.
        FarflungError: nobody of the swarm answers.
    """
    runs = RunSource(wish.runs)
    with bind(wish.host, wish.port) as listening, contextlib.ExitStack() as stack:
        connection = stack.enter_context(Connection(wish.ticket)) if wish.ticket is not None else None
        name = connection.node.node.ticket.swarm if connection is not None else ""
        invites = _inviting(connection, listening) if connection is not None else None
        frame.install(name, _tabs(connection, invites, wish.models, runs))
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        if invites is not None and not invites.refusal:
            # Pages of others, whose names suddenly lead here, must not act in the viewer's name.
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=OWN_NAMES)
        ui.run_with(app, title=frame.TITLE, dark=None, binding_refresh_interval=None, show_welcome_message=False)
        shown_host, shown_port = listening.getsockname()[:2]
        print(f"dashboard at http://{shown_host}:{shown_port}/", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS)
        uvicorn.Server(config).run(sockets=[listening])


def _inviting(connection: Connection, listening: socket.socket) -> InviteSource:
    host = str(listening.getsockname()[0])
    return InviteSource(connection, host, is_loopback=ipaddress.ip_address(host).is_loopback)


def _tabs(
    connection: Connection | None, invites: InviteSource | None, models: Sequence[str], runs: RunSource
) -> list[frame.Tab]:
    of_runs = frame.Tab("Runs", "/runs", lambda: _runs(runs))
    if connection is None or invites is None:
        return [of_runs]
    swarm, events = SwarmSource(connection), EventSource(connection)
    answers = LazyAnswers(models, connection)
    return [
        frame.Tab("Swarm", "/swarm", lambda: _swarm(swarm), every_seconds=2.0),
        frame.Tab("Chat", "/chat", lambda: _chat(swarm, answers), every_seconds=0.2),
        of_runs,
        frame.Tab("Events", "/events", lambda: _events(events)),
        frame.Tab("Invite", "/invite", lambda: _invite(invites)),
    ]


def _invite(source: InviteSource) -> frame.Update:
    page = InvitePage(source)

    async def update() -> None:
        try:
            page.show(await source.view())
        except ValueError as error:
            page.say(str(error))

    return update


def _events(source: EventSource) -> frame.Update:
    page = EventsPage()

    async def update() -> None:
        page.show(shown(await source.events(), page.words, source.sites))

    return update


def _runs(source: RunSource) -> frame.Update:
    page = RunsPage()
    drawn: tuple[object, ...] = ()

    async def update() -> None:
        nonlocal drawn
        page.offer(await source.names())
        if not page.chosen:
            page.say("No run is known here yet: give its folder with --run, or lead one on this machine.")
            return
        try:
            log = await source.read(page.chosen)
        except ValueError as error:
            page.say(str(error))
            return
        now = (page.chosen, page.quantity, page.over, log.version, log.state)
        if now != drawn:
            page.show(view_of(log), curves(log, page.quantity, page.over))
            drawn = now

    return update


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
