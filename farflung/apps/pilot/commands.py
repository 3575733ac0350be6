"""`farflung pilot`."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from farflung.apps.plan.commands import Language, Override, check_files_to_write

MEASURE_SECONDS = 60.0
SECONDS = 300.0
SERVE = "serve"
"""The goal that is tried without a run."""


def pilot(
    plan_file: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN.toml]", help="A model and a goal; to try a run without a swarm, places as well."),
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(
            "--join", envvar="FARFLUNG_TICKET", show_envvar=True, help="The swarm's ticket: its places count."
        ),
    ] = None,
    measure_seconds: Annotated[
        float, typer.Option("--measure-seconds", help="How long links and machines are measured.")
    ] = MEASURE_SECONDS,
    seconds: Annotated[float, typer.Option("--seconds", help="How long the job is tried.")] = SECONDS,
    method: Annotated[
        str | None,
        typer.Option("--method", help="Such as desloc or async; else the plan's best. Fine-tuning: onebyte."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report here, for programs.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Also write it as a page of its own here.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where the run is kept; else nowhere. Serving has none.")
    ] = None,
    language: Language = "en",
    override: Override = None,
) -> None:
    """Try a job small and for real in a swarm, and say how far the plan is from it."""
    from farflung.apps.plan.plan_file import plan_tables
    from farflung.apps.plan.words import LANGUAGES
    from farflung.apps.runs.reader import check_known
    from farflung.apps.tickets import find_ticket

    check_known(language, LANGUAGES, "--language", what="language")
    check_files_to_write(json_file, html_file)
    if not (measure_seconds > 0 and seconds > 0):
        raise ValueError("--measure-seconds and --seconds must be positive")
    tables = plan_tables(plan_file, tuple(override or ()))
    has_places = "sites" in tables and tables.get("goal", {}).get("kind", "serve") != "serve"
    ticket = None if join is None and has_places else find_ticket(join)
    if tables.get("goal", {}).get("kind", SERVE) == SERVE:
        forks = contextlib.nullcontext()
    else:
        from farflung.apps.fork_server import serving_forks

        forks = serving_forks("farflung.apps.runs.take_seat")  # a run's seats start at once
    with forks:
        from farflung.apps.pilot.command import Wish, try_it

        wish = Wish(
            ticket=ticket,
            tables=tables,
            measure_seconds=measure_seconds,
            seconds=seconds,
            method=method,
            folder=folder,
            language=language,
            json_file=json_file,
            html_file=html_file,
        )
        try_it(wish)
