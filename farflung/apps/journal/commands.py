"""The commands of `farflung journal`; what they do is imported when one is run."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Check, replay and edit the journals of one-byte fine-tunes (.flj).", no_args_is_help=True)

Journal = Annotated[Path, typer.Argument(help="A journal (.flj).")]
Base = Annotated[str, typer.Option("--base", help="The base model: a folder in Hugging Face format, or a Hub id.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes; must not be there yet.")]
Unfinished = Annotated[bool, typer.Option("--unfinished", help="Also a journal that is still being written.")]


@app.command()
def verify(
    journal: Journal,
    base: Annotated[str | None, typer.Option("--base", help="Also check that it is about this model.")] = None,
    remeasure: Annotated[
        float | None, typer.Option("--remeasure", help="Measure this share of the entries again (0.02, say).")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The run file (.toml) whose data and objective were measured.")
    ] = None,
    unfinished: Unfinished = False,
) -> None:
    """Check every hash, rule and signature; says what is wrong and where."""
    from farflung.apps.journal.show import verify_journal

    verify_journal(journal, base, remeasured_share=remeasure, run_file=data, is_unfinished_allowed=unfinished)


@app.command()
def replay(journal: Journal, base: Base, output: Output, unfinished: Unfinished = False) -> None:
    """Write the fine-tuned model as a Hugging Face folder."""
    from farflung.apps.journal.replay import replay_journal

    replay_journal(journal, base, output, is_unfinished_allowed=unfinished)


@app.command()
def show(
    journal: Journal,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    unfinished: Unfinished = False,
) -> None:
    """Show what a journal is about and who contributed what."""
    from farflung.apps.journal.show import show_journal

    show_journal(journal, as_json=as_json, is_unfinished_allowed=unfinished)


@app.command()
def diff(
    first: Journal,
    second: Journal,
    tensors: Annotated[bool, typer.Option("--tensors", help="Also compare the updates of each tensor.")] = False,
    unfinished: Unfinished = False,
) -> None:
    """Show where two journals part, and how alike their updates are."""
    from farflung.apps.journal.compare import diff_journals

    diff_journals(first, second, is_by_tensor=tensors, is_unfinished_allowed=unfinished)


@app.command()
def merge(first: Journal, second: Journal, output: Output) -> None:
    """Add the updates of two journals of one base model; what both begin with counts once."""
    from farflung.apps.journal.change import merge_journals

    merge_journals(first, second, output)


@app.command()
def revoke(
    journal: Journal,
    participant: Annotated[str, typer.Argument(help="A name, a number, or the beginning of a peer id.")],
    output: Output,
    from_round: Annotated[int, typer.Option("--from-round", help="The first round that counts no more.")] = 0,
    reason: Annotated[str, typer.Option("--reason", help="For whoever reads the journal.")] = "",
) -> None:
    """Take out exactly what one participant contributed."""
    from farflung.apps.journal.change import revoke_participant

    revoke_participant(journal, participant, output, first_round=from_round, reason=reason)


@app.command()
def export(
    journal: Journal,
    output: Output,
    form: Annotated[
        str, typer.Option("--format", help="entries (JSON Lines), update (safetensors) or adapter (LoRA).")
    ] = "entries",
    rank: Annotated[int, typer.Option("--rank", help="Of the adapter's matrices.")] = 16,
    base: Annotated[str | None, typer.Option("--base", help="The base model; an adapter needs it.")] = None,
    unfinished: Unfinished = False,
) -> None:
    """Write a journal's entries or its update for other programs."""
    from farflung.apps.journal.export import export_journal

    export_journal(journal, output, form, rank=rank, base=base, is_unfinished_allowed=unfinished)
