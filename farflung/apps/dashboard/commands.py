"""`farflung dashboard`: its options, and what is refused before anything is loaded."""

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer

Join = Annotated[
    str | None, typer.Option("--join", envvar="FARFLUNG_TICKET", show_envvar=True, help="The ticket of the swarm.")
]


def dashboard(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models to chat with: folders or Hub ids; else all the swarm serves.")
    ] = None,
    join: Join = None,
    run: Annotated[
        list[Path] | None, typer.Option("--run", help="Folder of a run to show; repeatable. Those led here are found.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; whoever reaches it may look.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: any that is free.")] = 8080,
) -> None:
    """Watch a swarm in the browser, and talk with its models."""
    if importlib.util.find_spec("nicegui") is None:
        raise ValueError("the dashboard needs the extra of that name: pip install 'farflung[dashboard]'")
    from farflung.apps.tickets import TICKET_VARIABLE, find_ticket

    has_ticket = join is not None or bool(os.environ.get(TICKET_VARIABLE))
    ticket = find_ticket(join) if has_ticket or not run else None
    from farflung.apps.dashboard.main import Wish, serve_dashboard

    serve_dashboard(Wish(ticket=ticket, host=host, port=port, models=models or (), runs=run or ()))
