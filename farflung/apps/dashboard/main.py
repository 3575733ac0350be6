"""The dashboard's process: a node of the swarm with a client's ticket, and a web server on this machine."""

import uvicorn
from fastapi import FastAPI
from nicegui import ui

from farflung.apps.dashboard import frame
from farflung.apps.dashboard.sources import SwarmSource
from farflung.apps.dashboard.swarm_page import SwarmPage
from farflung.apps.listening import bind
from farflung.apps.wiring import Connection

GRACE_SECONDS = 1


def serve_dashboard(ticket: str, *, host: str, port: int) -> None:
    """Serve the pages until the process is told to stop.

    Raises:
        ValueError: a port in use, a bad ticket.
        FarflungError: nobody of the swarm answers.
    """
    listening = bind(host, port)
    with listening, Connection(ticket) as connection:
        swarm = SwarmSource(connection)
        frame.install(swarm.name, {"Swarm": frame.Tab("Swarm", "/", lambda: _swarm(swarm))})
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        ui.run_with(app, title=frame.TITLE, dark=None, binding_refresh_interval=None, show_welcome_message=False)
        shown_host, shown_port = listening.getsockname()[:2]
        print(f"dashboard at http://{shown_host}:{shown_port}/", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS)
        uvicorn.Server(config).run(sockets=[listening])


def _swarm(source: SwarmSource) -> frame.Update:
    page = SwarmPage()

    async def update() -> None:
        page.show(await source.picture())

    return update
