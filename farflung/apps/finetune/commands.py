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
        typer.Option("--method", help="How it is tuned: onebyte, or on this machine alone: mezo, adam, fedavg-lora."),
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

    With --method also by others, to compare: the summary.json in each run's folder has the same keys.
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
    )
