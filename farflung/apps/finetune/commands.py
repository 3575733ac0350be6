"""`farflung finetune`."""

from typing import Annotated

import typer

from farflung.apps.runs.commands import (
    Advertise,
    EngineOption,
    Host,
    Metrics,
    Override,
    Port,
    Resume,
    RunFileArgument,
    Show,
    Simulate,
    lead,
)


def finetune(
    run_file: RunFileArgument = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="How it is tuned: onebyte; through a swarm of block servers: lora, prompt; or on this machine alone: "
            "mezo, adam, fedavg-lora.",
        ),
    ] = None,
    ticket: Annotated[
        str | None,
        typer.Option("--join", help="Of the swarm that serves the model, for lora and prompt; else FARFLUNG_TICKET."),
    ] = None,
    servers: Annotated[
        int | None, typer.Option("--servers", help="Start so many block servers here for that, in place of a swarm.")
    ] = None,
    simulate: Simulate = False,
    resume: Resume = False,
    show: Show = False,
    override: Override = None,
    host: Host = "127.0.0.1",
    port: Port = 0,
    advertise: Advertise = None,
    engine: EngineOption = "processes",
    metrics: Metrics = None,
) -> None:
    """Fine-tune a model by one byte per measured direction: on this machine and others that join, or simulated.

    With --method lora or prompt, through a swarm that serves the model: this machine holds embeddings, head and what is
    trained. With the other methods on this machine alone, to compare. The summary.json in each run's folder has the
    same keys.
    """
    overrides = [*([] if method is None else [f'method.name="{method}"']), *(override or ())]
    lead(
        "finetune",
        run_file,
        overrides,
        simulate=simulate,
        resume=resume,
        show=show,
        host=host,
        port=port,
        advertise=advertise,
        engine=engine,
        metrics=metrics,
        options={"ticket": ticket, "num_servers": servers},
    )
