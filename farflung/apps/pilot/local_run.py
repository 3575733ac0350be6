"""A job tried by a run of its own: processes of this machine in the place of a plan's sites, over the plan's links.

What all goals share that are tried so: where the run is kept, how plan and run file are made small, how the run is led,
and what its log has that is set beside the plan.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from farflung.apps.capacity import USABLE_SHARE
from farflung.apps.pilot.comparison import Row
from farflung.apps.plan.outcome import Outcome
from farflung.apps.plan.places import between_sites
from farflung.apps.plan.plan_file import MachineSettings, PlanFile
from farflung.apps.plan.planning import make_plan
from farflung.apps.plan.sizes import Sizes
from farflung.apps.plan.words import Sentence, said
from farflung.apps.runs.command import Wish, do_run
from farflung.apps.runs.history import History, Point, read_history
from farflung.apps.runs.job import job_of
from farflung.apps.runs.known import RUN_FILE
from farflung.apps.runs.logs import LOG_NAME
from farflung.apps.runs.reader import check_known
from farflung.apps.runs.toml_text import toml_text

REPORT_SECONDS = 0.5
BEGINNING_SHARE = 0.2
"""Of a worker's steps, whose pace does not count."""


@dataclass(frozen=True, slots=True)
class Small:
    """What is run, and what is predicted of it."""

    tables: dict[str, Any]
    """The run file."""
    method: Sentence
    outcome: Outcome
    num_steps: int
    """Of all workers together, in the goal's own unit."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run is led."""

    path: Path
    is_kept: bool
    """It is the user's, who gets what was learned; else it is gone afterwards."""


@contextlib.contextmanager
def run_folder(folder: Path | None) -> Iterator[RunFolder]:
    """That folder; None: one that is gone afterwards.

    Raises:
        ValueError: another run is there.
    """
    if folder is not None:
        if (folder / RUN_FILE).exists():  # told now, and not after everything was measured
            raise ValueError(f"{folder} already holds a run: choose another --folder")
        yield RunFolder(folder, is_kept=True)
        return
    with TemporaryDirectory(prefix="farflung-pilot-") as own:
        yield RunFolder(Path(own) / "run", is_kept=False)


def sites_of(plan: PlanFile, method: Sentence) -> list[str]:
    """Names of those that a method uses: the one that it names, or all."""
    site = str(method.values.get("site", ""))
    return [name for name in plan.site_names if site in ("", name)]


def miniature(plan: PlanFile, machines: Sequence[MachineSettings]) -> PlanFile:
    """The plan's sites and links, with these machines, which share this one's memory."""
    memory_gb = psutil.virtual_memory().available / 1e9 / len(machines)
    return replace(plan, machines=tuple(replace(machine, memory_gb=memory_gb) for machine in machines))


def check_memory(needed_bytes: float, num_processes: int, does: str) -> None:
    """Whether so many processes can each have so much; `does`: what they do with the plan's model.

    Raises:
        ValueError: they cannot.
    """
    needed = needed_bytes * num_processes
    usable = psutil.virtual_memory().available * USABLE_SHARE
    if needed > usable:
        raise ValueError(
            f"a pilot {does} the plan's own model in {num_processes} processes of this machine, which takes "
            f"{needed / 1e9:.3g} GB, and {usable / 1e9:.3g} GB may be used: give a smaller [model], or fewer sites"
        )


def local_tables(tables: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A run file that a plan writes, for processes of this machine over shaped links."""
    regions = [{**region, "is_remote": False, "workers": _here(region["workers"])} for region in tables["regions"]]
    return {
        **tables,
        "run": {**tables["run"], "name": "pilot", "folder": str(folder), "is_shaped": len(regions) > 1},
        "regions": regions,
        "logging": {"every_seconds": REPORT_SECONDS, "tensorboard": False},
    }


def _here(workers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in worker.items() if name != "is_remote"} for worker in workers]


def chosen_method(
    plan: PlanFile, sizes: Sizes, method: str | None, names: Sequence[str], alone: Sequence[str] = ()
) -> Sentence:
    """The user's, of these names, over all sites or `alone` on one machine; else the plan's best.

    Raises:
        ValueError: there is no such method, or none that the plan can do.
    """
    if method is None:
        return make_plan(plan, sizes).outcomes[0].method
    check_known(method, names, "--method", what="method")
    return said("method alone" if method in alone else "method all", method=method)


def led(kind: str, small: Small, folder: RunFolder) -> tuple[History, bool]:
    """What the log of the run says, and whether it came to its end."""
    is_whole = True
    with TemporaryDirectory(prefix="farflung-pilot-") as own:
        path = Path(own) / "run.toml"
        path.write_text(toml_text(small.tables), encoding="utf-8")
        try:
            do_run(job_of(kind), Wish(path=path, is_kept=folder.is_kept))
        except KeyboardInterrupt:
            is_whole = False
    return read_history(folder.path / LOG_NAME), is_whole


def byte_rows(outcome: Outcome, share: float, history: History) -> list[Row]:
    """From site to site, of so large a share of the run."""
    predicted = between_sites(outcome.sent)
    return [
        Row(said("row bytes", one=way[0], other=way[1]), "B", share * predicted[way], history.link_bytes.get(way, 0))
        for way in sorted(predicted)
    ]


def rate_of(history: History) -> float:
    """Local steps per second of all workers, each from when it had settled to its last step; 0: too few."""
    by_seat: dict[str, list[Point]] = {}
    for point in history.points:
        told = by_seat.get(point.seat, [])
        if point.num_steps > (told[-1].num_steps if told else 0):  # at its end it waits for others
            by_seat[point.seat] = [*told, point]
    return sum(_rate(_settled(told)) for told in by_seat.values())


def _settled(told: Sequence[Point]) -> Sequence[Point]:
    """Without the beginning: the first round waits for connections, which then take a while to reach their rate."""
    num_steps_begun = max(told[0].num_steps + 1, BEGINNING_SHARE * told[-1].num_steps)
    settled = [point for point in told if point.num_steps >= num_steps_begun]
    return settled if len(settled) > 1 else told


def _rate(told: Sequence[Point]) -> float:
    seconds = told[-1].seconds - told[0].seconds
    return (told[-1].num_steps - told[0].num_steps) / seconds if seconds > 0 else 0.0
