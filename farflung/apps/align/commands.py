"""`farflung align`."""

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

Mode = Annotated[
    str | None,
    typer.Option("--mode", help="sequential, async or colocated: sync.mode of the run file."),
]
NoGpu = Annotated[bool, typer.Option("--no-gpu", help="Compute on the processor here, whatever the run file says.")]
Advise = Annotated[
    bool, typer.Option("--advise", help="Say what would make the run in this file's folder faster, and do nothing.")
]


def align(
    run_file: RunFileArgument = None,
    mode: Mode = None,
    no_gpu: NoGpu = False,
    simulate: Simulate = False,
    resume: Resume = False,
    show: Show = False,
    advise: Advise = False,
    override: Override = None,
    host: Host = "127.0.0.1",
    port: Port = 0,
    advertise: Advertise = None,
    engine: EngineOption = "processes",
    metrics: Metrics = None,
) -> None:
    """Improve a model by reinforcement learning: a trainer here, and rollout workers here and wherever they join."""
    if advise:
        from farflung.apps.align.advice import print_advice

        print_advice(run_file)
        return
    overrides = [f"sync.mode={mode}"] if mode is not None else []
    overrides += ["model.device=cpu"] if no_gpu else []
    lead(
        "align",
        run_file,
        [*overrides, *(override or ())],
        simulate=simulate,
        resume=resume,
        show=show,
        host=host,
        port=port,
        advertise=advertise,
        engine=engine,
        metrics=metrics,
    )
