"""`farflung plan`."""

from pathlib import Path
from typing import Annotated

import typer

Language = Annotated[str, typer.Option("--language", help="en or ja.")]
Override = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one value, as goal.users=16.")
]


def check_files_to_write(*paths: Path | None) -> None:
    """Before the work that they are for; None: not wanted.

    Raises:
        ValueError: there can be no such file.
    """
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} for {path.name}: make it first")
        if path is not None and path.is_dir():
            raise ValueError(f"{path} is a folder: give the name of a file in it")


def plan(
    plan_file: Annotated[
        Path | None, typer.Argument(metavar="[PLAN.toml]", help="Sites, machines, links, a model and a goal.")
    ] = None,
    join: Annotated[
        str | None, typer.Option("--join", help="Take sites, machines and links of the swarm of this ticket instead.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the answer here, for programs.")] = None,
    run_file: Annotated[
        Path | None, typer.Option("--run-file", help="Also write here what to start with: a run file, or commands.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Also write a page of its own here, with plots.")
    ] = None,
    language: Language = "en",
    override: Override = None,
) -> None:
    """Say what a goal would take with these machines: methods tried in the simulator, ranked, with what limits them."""
    from farflung.apps.plan.plan_file import plan_of, plan_tables
    from farflung.apps.plan.words import LANGUAGES
    from farflung.apps.runs.reader import check_known

    check_known(language, LANGUAGES, "--language", what="language")
    check_files_to_write(json_file, run_file, html_file)
    if plan_file is None and join is None:
        raise ValueError("give a PLAN.toml (see examples/plan.toml), or --join TICKET to plan for a running swarm")
    tables = plan_tables(plan_file, tuple(override or ()))
    if join is None:
        found = plan_of(tables)
    else:
        from farflung.apps.plan.swarm import plan_of_swarm
        from farflung.apps.tickets import find_ticket

        found = plan_of_swarm(find_ticket(join), tables)
    from farflung.apps.plan.command import plan_it

    plan_it(found, language, json_file, run_file, html_file)
