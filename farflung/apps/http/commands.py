"""`farflung api`."""

from typing import Annotated

import typer

from farflung.apps.options import Draft, Join


def api(
    models: Annotated[list[str] | None, typer.Argument(help="Folders or Hub ids; else all the swarm serves.")] = None,
    join: Join = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: any that is free.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option("--api-key", envvar="FARFLUNG_API_KEY", help="Only holders may ask; repeatable.")
    ] = None,
    sessions: Annotated[int, typer.Option("--sessions", help="Answers written at the same time, per model.")] = 8,
    waiting: Annotated[int, typer.Option("--waiting", help="Requests that may wait; others get 429.")] = 32,
    resume_seconds: Annotated[
        float,
        typer.Option("--resume-seconds", help="A stream goes on so long for a client that may come back; 0: it ends."),
    ] = 30.0,
    draft: Draft = "off",
    standby: Annotated[
        bool,
        typer.Option("--standby", help="Let second holders of all blocks keep up, so that a loss costs a few tokens."),
    ] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="NAME=FOLDER: a LoRA adapter, asked for as MODEL:NAME; repeatable."),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads; else one per core.")] = None,
) -> None:
    """Serve an OpenAI-compatible HTTP interface."""
    from farflung.apps.tickets import find_ticket

    ticket = find_ticket(join)
    from farflung.apps.adapters import AdapterChoice
    from farflung.apps.api import serve_api
    from farflung.apps.http.engine import EngineLimits
    from farflung.apps.http.resuming import StreamLimits
    from farflung.apps.serving import limit_threads

    limit_threads(threads)
    limits = EngineLimits(num_running_max=sessions, num_waiting_max=waiting)
    serve_api(
        models or (),
        ticket,
        host=host,
        port=port,
        api_keys=api_key or (),
        limits=limits,
        stream_limits=StreamLimits(resume_seconds=resume_seconds),
        draft=draft,
        is_standby_wanted=standby,
        adapters=[AdapterChoice.parse(text) for text in adapter or ()],
    )
