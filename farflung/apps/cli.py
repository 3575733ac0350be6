"""The command line. Heavy packages are imported by the commands that need them, so that --help answers at once."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from farflung.apps.align.commands import align
from farflung.apps.config.commands import app as config_app
from farflung.apps.dashboard.commands import dashboard
from farflung.apps.finetune.commands import finetune
from farflung.apps.http.commands import api
from farflung.apps.journal.commands import app as journal_app
from farflung.apps.options import Adapter, Draft, Home, Join, MaxTokens, Model, Seed, Stop, Temperature, TopK, TopP
from farflung.apps.parents import tie_to_parent
from farflung.apps.pilot.commands import pilot
from farflung.apps.plan.commands import plan
from farflung.apps.pretrain.commands import pretrain
from farflung.apps.processes import CommandFailed, leave
from farflung.apps.runs.commands import Metrics, join
from farflung.apps.ticket_commands import invite, revoke
from farflung.apps.tracing import TRACES_VARIABLE, check_traces
from farflung.runtime.log import FORMAT_VARIABLE, LogFormat, start_logging
from farflung.world.errors import FarflungError, Unreachable

FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130

app = typer.Typer(
    help="Serve, tune, pretrain and align language models on machines that are far apart.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(journal_app, name="journal")
app.add_typer(config_app, name="config")


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log decisions and their reasons.")] = False,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            "--log-format", envvar=FORMAT_VARIABLE, show_envvar=True, help="Log them as text, or as JSON lines."
        ),
    ] = None,
    traces: Annotated[
        str | None,
        typer.Option("--traces", envvar=TRACES_VARIABLE, show_envvar=True, help="Send spans to an OTLP collector."),
    ] = None,
) -> None:
    if traces:
        check_traces(traces)
    if verbose or log_format is not None:
        start_logging(log_format or "text")


@app.command()
def serve(
    model: Model,
    join: Join = None,
    new_swarm: Annotated[bool, typer.Option("--new-swarm", help="Found a swarm instead of joining one.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the new swarm; else the model's.")] = None,
    ticket_file: Annotated[Path | None, typer.Option("--ticket-file", help="Write the admin ticket here.")] = None,
    blocks: Annotated[str | None, typer.Option("--blocks", help="Serve blocks A to B-1, written A:B.")] = None,
    num_blocks: Annotated[int | None, typer.Option("--num-blocks", help="How many; else what memory allows.")] = None,
    cache_tokens: Annotated[int, typer.Option("--cache-tokens", help="Tokens of all sessions together.")] = 16_384,
    batch_sessions: Annotated[
        int, typer.Option("--batch-sessions", help="Sessions computed together at most; 1: one after another.")
    ] = 64,
    adapter_memory: Annotated[int, typer.Option("--adapter-memory", help="For clients' LoRA adapters, in MiB.")] = 256,
    packed: Annotated[
        bool, typer.Option("--packed", help="Weights in memory twice: faster with some 4 to 30 sessions at once (CPU).")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads; else one per core.")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0: all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: any that is free.")] = 0,
    advertise: Annotated[
        list[str] | None, typer.Option("--advertise", help="host:port under which others reach this server.")
    ] = None,
    dial_only: Annotated[bool, typer.Option("--dial-only", help="Accept no calls (behind NAT).")] = False,
    rendezvous: Annotated[
        bool, typer.Option(help="Keep the directory for others, so that it outlives the founder.")
    ] = True,
    site: Annotated[str, typer.Option("--site", help="Name of the place; machines of one site are near.")] = "",
    home: Home = None,
    metrics: Metrics = None,
) -> None:
    """Serve blocks of a model: found a swarm with --new-swarm, or join one with a ticket."""
    if join is not None and new_swarm:
        raise ValueError("give --join to enter a swarm or --new-swarm to found one, not both")
    if join is None and not new_swarm:
        raise ValueError("give --join TICKET (or set FARFLUNG_TICKET) to enter a swarm, or --new-swarm to found one")
    if join is not None:
        from farflung.apps.tickets import find_ticket

        find_ticket(join)  # before what takes seconds to load
    from farflung.apps.serve import Membership, serve
    from farflung.apps.serving import ServeOptions, limit_threads
    from farflung.apps.wiring import Place

    limit_threads(threads)
    options = ServeOptions(
        blocks=blocks,
        num_blocks=num_blocks,
        device=device,
        dtype=dtype,
        num_cache_tokens=cache_tokens,
        batch_sessions_max=batch_sessions,
        adapter_mebibytes=adapter_memory,
        is_packed=packed,
    )
    place = Place(
        home=home,
        host=host,
        port=port,
        advertise=advertise or (),
        is_dial_only=dial_only,
        is_rendezvous=rendezvous and not dial_only,
        site=site,
    )
    serve(model, options, place, Membership(ticket=join, swarm_name=name, ticket_file=ticket_file, metrics=metrics))


app.command()(invite)
app.command()(revoke)
app.command()(api)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue; - reads standard input.")],
    join: Join = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    draft: Draft = "off",
    adapter: Adapter = None,
) -> None:
    """Continue a text; greedily unless a temperature is given."""
    from farflung.apps.tickets import find_ticket

    ticket = find_ticket(join)
    from farflung.apps.terminal import Wish, generate

    text = sys.stdin.read() if prompt == "-" else prompt
    wish = Wish(
        num_tokens_max=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=tuple(stop or ())
    )
    generate(model, ticket, text, wish, draft, adapter)


@app.command()
def chat(
    model: Model,
    join: Join = None,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told first.")] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    draft: Draft = "off",
    adapter: Adapter = None,
) -> None:
    """Talk with a model."""
    from farflung.apps.tickets import find_ticket

    ticket = find_ticket(join)
    from farflung.apps.terminal import Wish, chat

    wish = Wish(
        num_tokens_max=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=tuple(stop or ())
    )
    chat(model, ticket, system, wish, draft, adapter)


@app.command()
def status(
    join: Join = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show who serves which blocks, how fast and how busy."""
    from farflung.apps.status import show_status
    from farflung.apps.tickets import find_ticket

    show_status(find_ticket(join), as_json=as_json)


@app.command()
def doctor(
    join: Join = None,
    host: Annotated[str, typer.Option("--host", help="Address that a server would listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port that it would listen on; 0: any that is free.")] = 0,
    advertise: Annotated[
        list[str] | None, typer.Option("--advertise", help="host:port at which the swarm is to call back, to try it.")
    ] = None,
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> int:
    """Try what other commands need, here and in a swarm; say what is wrong and what mends it, with status 1."""
    from farflung.apps.doctor.command import Patient, report

    return report(Patient(ticket=join, host=host, port=port, advertise=advertise or (), home=home), as_json=as_json)


app.command()(pretrain)
app.command()(align)
app.command()(finetune)
app.command()(join)
app.command()(plan)
app.command()(pilot)
app.command()(dashboard)


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option("--folder", help="Where the trained model is kept.")] = None,
    train_seconds: Annotated[float, typer.Option("--train-seconds", help="How long to train.")] = 90.0,
) -> None:
    """Train a small model, serve it by several processes, kill one in mid-answer, compare the words."""
    from farflung.apps.demo.main import run_demo
    from farflung.apps.fork_server import serving_forks

    with serving_forks("farflung.apps.serve", "farflung.apps.api"):
        run_demo(folder, train_seconds)


def main(arguments: list[str] | None = None) -> None:
    """Run a command (None: that of this process), and exit.

    A mistake of the user ends with one sentence and status 2, what fails by itself with 1, an interrupt with 130.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tie_to_parent()
    status: object = 0
    try:
        status = app(arguments, prog_name="farflung", standalone_mode=False)
    except (CommandFailed, Unreachable) as error:
        _fail(str(error), status=FAILED)
    except (ValueError, FarflungError) as error:
        _fail(str(error))
    except typer.TyperException as error:
        if not error.format_message():  # no command was given, and the help has been shown
            leave(USER_ERROR)
        _fail(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        leave(INTERRUPTED)
    leave(status if isinstance(status, int) else 0)


def _fail(sentence: str, *, status: int = USER_ERROR) -> None:
    print(f"farflung: {sentence}", file=sys.stderr)
    leave(status)
