"""The command that leads a run of any kind: from a run file to what it leaves, on processes or on virtual time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from farflung.apps.metrics.exporter import exporting
from farflung.apps.runs.job import AnyJob
from farflung.apps.runs.known import RUN_FILE, remember
from farflung.apps.runs.launchers import LauncherName
from farflung.apps.runs.local import Interrupted
from farflung.apps.runs.logs import check_installed
from farflung.apps.runs.reader import overrides_of, read_toml
from farflung.apps.runs.session import Session
from farflung.apps.runs.toml_text import toml_text
from farflung.apps.wiring import Place
from farflung.runtime.store import DISK_FULL, write_durably

MAY_CHANGE = ("logging", "simulation")
"""Sections that a resumed run may have otherwise; beside them, the budget may grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for."""

    path: Path | None = None
    """None: the run that the command has by itself."""
    overrides: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Variables; FARFLUNG_TRAINING__BATCH_SIZE and the like change the file, and `overrides` change them."""
    is_simulated: bool = False
    is_resumed: bool = False
    place: Place = field(default_factory=Place)
    launcher: LauncherName = "processes"
    """What the seats of this site run in."""
    metrics: str | None = None
    """Where Prometheus may ask: a port, or host:port."""
    is_kept: bool = True
    """False: the folder will be gone, so that nothing is made of what was learned, and nobody is told of it."""

    def load(self, job: AnyJob) -> Any:
        """The run.

        Raises:
            ValueError: a mistake in it.
        """
        return job.form.load(self.path, self.overrides, environment=self.environment, is_simulated=self.is_simulated)


def show_run(job: AnyJob, wish: Wish) -> None:
    """Print the full effective run file.

    Raises:
        ValueError: a mistake in it.
    """
    run = wish.load(job)
    print(toml_text(job.form.tables(run)), end="")


def do_run(job: AnyJob, wish: Wish) -> None:
    """Lead a run to the end of its budget, and leave what it has made.

    Raises:
        ValueError: a mistake in the run file, missing data, a folder that holds another run.
        CommandFailed: a seat fails again and again.
        KeyboardInterrupt: the user has stopped it; what is needed to resume it has been saved.
    """
    console = Console()
    if wish.is_simulated and wish.is_resumed:
        raise ValueError("a simulation is replayed, not resumed: leave out --resume and choose another run.folder")
    run = wish.load(job)
    run.logging.start()
    check_installed(run.logging)
    run = _with_folder(run, wish)
    _check_folder(job, run, wish)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(run.num_threads)
    with console.status("reading the data"):
        materials = job.gather(run)
    folder = _begin(job, run)
    session = Session(job, run, materials, folder, console)
    console.print(f"{job.summary(run, materials)}{f'; kept in {folder}' if wish.is_kept else ''}")
    try:
        _work(session, wish)
    except Interrupted as interrupted:
        stopped = "Stopped at once; what was saved before is kept" if interrupted.is_hurried else "Stopped and saved"
        if wish.is_kept:
            console.print(f"{stopped}. Go on with: [bold]{_resuming(job, folder / RUN_FILE)}[/bold]", soft_wrap=True)
        raise KeyboardInterrupt from None
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        way_out = "begin it again" if wish.is_simulated else f"go on with {_resuming(job, folder / RUN_FILE)}"
        raise ValueError(f"{folder} takes no more ({error.strerror}): make room there, then {way_out}") from None


def _work(session: Session, wish: Wish) -> None:
    try:
        with exporting(wish.metrics, [session.collector], session.tell):
            if wish.is_simulated:
                result = session.simulate()
            elif session.is_alone:
                result = session.work_alone(is_resumed=wish.is_resumed)
            else:
                result = session.lead(wish.place, wish.launcher, is_resumed=wish.is_resumed)
    finally:
        session.close()
    if wish.is_kept:
        session.leave(result, "virtual seconds" if wish.is_simulated else "seconds")


def _resuming(job: AnyJob, kept: Path) -> str:
    return f"farflung {job.name} {kept} --resume{job.resume_options}"


def _with_folder(run: Any, wish: Wish) -> Any:
    """The default run never stands in the way of the one before it; a named folder is the user's word."""
    changes = (*overrides_of(wish.environment).values(), *wish.overrides)
    is_named = wish.path is not None or any(one.startswith("run.") for one in changes)
    if wish.is_resumed or is_named:
        return run
    names = (run.run.folder if number == 1 else f"{run.run.folder}-{number}" for number in range(1, 10_000))
    free = next(name for name in names if not (Path(name) / RUN_FILE).exists())
    return replace(run, run=replace(run.run, folder=free))


def _check_folder(job: AnyJob, run: Any, wish: Wish) -> None:
    """Refuse a folder that holds a run already (or, to resume, none or another).

    Raises:
        ValueError: says so.
    """
    folder = Path(run.run.folder).expanduser()
    kept = folder / RUN_FILE
    if wish.is_resumed:
        _check_same(job, run, kept)
    elif kept.exists():
        raise ValueError(f"{folder} already holds a run: give --resume to go on with it, or choose another run.folder")


def _begin(job: AnyJob, run: Any) -> Path:
    """The run's folder with its run file in it.

    Raises:
        ValueError: nothing can be written there.
    """
    folder = Path(run.run.folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / RUN_FILE, toml_text(job.form.tables(run)).encode(), mode=0o644)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): choose another run.folder") from None
    remember(folder)
    return folder


def _check_same(job: AnyJob, run: Any, kept: Path) -> None:
    if not kept.exists():
        raise ValueError(f"there is no run in {kept.parent} to resume: start it without --resume")
    begun = job.form.read(read_toml(kept))
    before, now = job.form.tables(begun), job.form.tables(run)
    section, key = job.budget
    is_longer = now[section][key] > before[section][key]
    if is_longer:
        before[section][key] = now[section][key]
    for section in before:
        if section not in MAY_CHANGE and before[section] != now[section]:
            keys = _differing(before[section], now[section])
            raise ValueError(
                f"the run in {kept.parent} was begun with another [{section}]{keys}: resume it with "
                f"`{_resuming(job, kept)}`, or choose another run.folder"
            )
    if is_longer:
        job.check_longer(begun, run, kept.parent)


def _differing(before: object, now: object) -> str:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return ""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return f" ({', '.join(keys)})"
