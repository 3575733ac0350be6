"""`farflung pretrain`."""

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


def pretrain(
    run_file: RunFileArgument = None,
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
    """Pretrain a model over regions: on this machine and others that join, or simulated."""
    lead(
        "pretrain",
        run_file,
        override or (),
        simulate=simulate,
        resume=resume,
        show=show,
        host=host,
        port=port,
        advertise=advertise,
        engine=engine,
        metrics=metrics,
    )
