"""`farflung config check | show | schema`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from farflung.apps.runs.commands import Override

app = typer.Typer(help="Run files: check one, show it in full, or describe them for an editor.", no_args_is_help=True)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run.")]
Kind = Annotated[
    str | None, typer.Option("--kind", help="pretrain, align or finetune; else what [run] of the file says.")
]
Simulate = Annotated[bool, typer.Option("--simulate", help="As for a run in virtual time.")]


@app.command()
def check(run_file: RunFile, kind: Kind = None, simulate: Simulate = False, override: Override = None) -> None:
    """Read a run file as its command would, and say whether anything is wrong; starts and loads nothing."""
    from farflung.apps.config.files import load

    form, _ = load(run_file, kind, override or (), os.environ, is_simulated=simulate)
    print(f"{run_file}: no mistake found; farflung {form.kind} {run_file}{' --simulate' if simulate else ''} begins it")


@app.command()
def show(run_file: RunFile, kind: Kind = None, simulate: Simulate = False, override: Override = None) -> None:
    """Print every key of a run with its value, those that the file leaves open too."""
    from farflung.apps.config.files import load
    from farflung.apps.runs.toml_text import toml_text

    form, run = load(run_file, kind, override or (), os.environ, is_simulated=simulate)
    print(toml_text(form.tables(run)), end="")


@app.command()
def schema(kind: Kind = None) -> None:
    """Print the JSON schema of run files: of one kind, or of all, told apart by run.kind."""
    import json

    from farflung.apps.config.schema import schema_of
    from farflung.apps.runs.job import KINDS, form_of

    print(json.dumps(schema_of([form_of(one) for one in ([kind] if kind else KINDS)]), indent=1))
