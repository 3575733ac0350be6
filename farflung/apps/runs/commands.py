"""`farflung join`, and the options of every command that leads a run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer


def _checked_address(given: str | None) -> str | None:
    """Refuse what is none before anything is loaded."""
    if given is not None:
        from farflung.apps.metrics.exporter import parse_address

        parse_address(given)
    return given


EngineOption = Annotated[
    str,
    typer.Option("--engine", help="What seats run in: processes of this machine, or actors of ray (started again)."),
]
Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="FARFLUNG_HOME", show_envvar=True, help="Folder for key, journals and caches."),
]
RunFileArgument = Annotated[
    Path | None, typer.Argument(metavar="[RUN.toml]", help="The run; none: a small one on this machine.")
]
Simulate = Annotated[bool, typer.Option("--simulate", help="Compute in virtual time, with links as the file says.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
Show = Annotated[bool, typer.Option("--show", help="Print the full run file and do nothing.")]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        callback=_checked_address,
        help="Port, or host:port, at which Prometheus may ask; 0: any that is free.",
    ),
]
Override = Annotated[
    list[str] | None, typer.Option("--set", help="Change one value: training.batch_size=4; may be repeated.")
]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0: all of them.")]
Port = Annotated[int, typer.Option("--port", help="Port to listen on; 0: any that is free.")]
Advertise = Annotated[
    list[str] | None, typer.Option("--advertise", help="host:port under which other machines reach this one.")
]


def lead(
    kind: str,
    run_file: Path | None,
    overrides: Sequence[str],
    *,
    simulate: bool,
    resume: bool,
    show: bool,
    host: str,
    port: int,
    advertise: Sequence[str] | None,
    engine: str,
    metrics: str | None,
    options: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """What every command that leads a run of some kind does with its options; `options`: those of this kind alone."""
    from farflung.apps.runs.launchers import check_launcher

    launcher = check_launcher(engine)  # before what takes seconds to load
    from farflung.apps.runs.command import Wish, do_run, show_run
    from farflung.apps.runs.job import job_of
    from farflung.apps.wiring import Place

    wish = Wish(
        path=run_file,
        overrides=tuple(overrides),
        environment=dict(os.environ),
        is_simulated=simulate,
        is_resumed=resume,
        place=Place(host=host, port=port, advertise=advertise or ()),
        launcher=launcher,
        metrics=metrics,
    )
    job = job_of(kind, **options)
    if show:
        show_run(job, wish)
    elif simulate or engine != "processes":
        do_run(job, wish)
    else:
        from farflung.apps.fork_server import serving_forks

        with serving_forks("farflung.apps.runs.take_seat"):
            do_run(job, wish)


def join(
    ticket: Annotated[str | None, typer.Argument(help="The run's ticket.")] = None,
    region: Annotated[str | None, typer.Option("--region", help="Where this machine is; else where most lack.")] = None,
    seat: Annotated[int | None, typer.Option("--seat", help="Which seat of the run to take; else a worker's.")] = None,
    result: Annotated[Path | None, typer.Option("--result", help="Leave the run's result here at the end.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="A file to learn from that stays here; for runs on private data.")
    ] = None,
    ranks: Annotated[
        int, typer.Option("--ranks", help="Processes here that are one worker together, one per accelerator.")
    ] = 1,
    host: Host = "127.0.0.1",
    port: Port = 0,
    advertise: Advertise = None,
    dial_only: Annotated[bool, typer.Option("--dial-only", help="Accept no calls (behind NAT).")] = False,
    home: Home = None,
    engine: EngineOption = "processes",
    metrics: Metrics = None,
) -> None:
    """Take part in a run of any kind that is led elsewhere, as one of its workers."""
    from farflung.apps.runs.launchers import check_launcher, run_with
    from farflung.apps.tickets import find_ticket
    from farflung.runtime.home import default_home

    launcher = check_launcher(engine)
    if data is not None and not data.is_file():
        raise ValueError(f"there is no file {data}: give a TSV or JSON Lines file with texts and labels")
    found = find_ticket(ticket)
    if launcher == "ray":
        folder = (home or default_home()).absolute()
        place = _options(host=host, port=port, advertise=advertise, dial_only=dial_only, home=folder)
        part = _options(
            region=region,
            seat=seat,
            result=result and result.absolute(),
            data=data and data.absolute(),
            ranks=ranks,
            metrics=metrics,
        )
        run_with(launcher, folder / "logs", ["join", *place, *part], ranks, found)
        return
    from farflung.apps.runs.take_seat import take_seat
    from farflung.apps.wiring import Place

    place = Place(home=home, host=host, port=port, advertise=advertise or (), is_dial_only=dial_only)
    take_seat(found, place, seat=seat, region=region, result=result, num_ranks=ranks, own_data=data, metrics=metrics)


def _options(**values: object) -> list[str]:
    """As words of a command line; what is None or False is left out."""
    words: list[str] = []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                words.append(option)
            elif one is not None and one is not False:
                words += [option, str(one)]
    return words
