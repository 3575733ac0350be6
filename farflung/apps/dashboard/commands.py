"""`farflung dashboard`: its options, and what is refused before anything is loaded."""

import importlib.util
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
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; whoever reaches it may look.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: any that is free.")] = 8080,
) -> None:
    """Watch a swarm in the browser, and talk with its models."""
    if importlib.util.find_spec("nicegui") is None:
        raise ValueError("the dashboard needs the extra of that name: pip install 'farflung[dashboard]'")
    from farflung.apps.tickets import find_ticket

    ticket = find_ticket(join)
    from farflung.apps.dashboard.main import serve_dashboard

    serve_dashboard(models or (), ticket, host=host, port=port)
