"""`farflung pretrain`: from a run file to a model folder, on processes of this machine or on virtual time."""

import errno
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from farflung.apps.pretrain.engines import engine_of
from farflung.apps.pretrain.history import Point, bytes_entry, decision_entry, read_history, report_entry
from farflung.apps.pretrain.launchers import LauncherName
from farflung.apps.pretrain.lead import Gathered
from farflung.apps.pretrain.local import Interrupted, LocalRun
from farflung.apps.pretrain.logs import LOG_NAME, JsonLines, check_installed, open_recorders
from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.plot import terminal
from farflung.apps.pretrain.progress import Bars
from farflung.apps.pretrain.reader import read_toml
from farflung.apps.pretrain.result import trained_model, validation_loss, write_model, write_plot
from farflung.apps.pretrain.run_file import RunFile, load_run_file, run_from, tables_of
from farflung.apps.pretrain.simulated import SimulatedRun
from farflung.apps.pretrain.toml_text import toml_text
from farflung.apps.wiring import Place
from farflung.learn.parameters import Tensors
from farflung.runtime.store import write_durably

RUN_FILE = "run.toml"
SHOW_SECONDS = 0.25
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAY_CHANGE = ("logging", "simulation")
"""Sections that a resumed run may have otherwise; of [training], the budget may grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for."""

    path: Path | None = None
    """None: the embedded default."""
    overrides: Sequence[str] = ()
    is_simulated: bool = False
    is_resumed: bool = False
    place: Place = field(default_factory=Place)
    launcher: LauncherName = "processes"
    """What the seats of this site run in."""


def show_run(wish: Wish) -> None:
    """Print the full effective run file.

    Raises:
        ValueError: a mistake in it.
    """
    print(toml_text(tables_of(load_run_file(wish.path, wish.overrides, is_simulated=wish.is_simulated))), end="")


def pretrain(wish: Wish) -> None:
    """Train to the end of the budget and leave a model.

    Raises:
        ValueError: a mistake in the run file, missing data, a folder that holds another run.
        CommandFailed: a seat fails again and again.
        KeyboardInterrupt: the user has stopped it; what is needed to resume it has been saved.
    """
    console = Console()
    if wish.is_simulated and wish.is_resumed:
        raise ValueError("a simulation is replayed, not resumed: leave out --resume and choose another run.folder")
    run = load_run_file(wish.path, wish.overrides, is_simulated=wish.is_simulated)
    check_installed(run.logging)
    run = _with_folder(run, wish)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(run.training.num_threads)
    with console.status("reading the data"):
        materials = Materials.gather(run)
        materials.check()
    folder = _begin(run, wish)
    session = _Session(run, materials, folder, console)
    console.print(session.summary)
    try:
        _train(session, wish)
    except Interrupted:
        console.print(f"Stopped and saved. Go on with: [bold]farflung pretrain {folder / RUN_FILE} --resume[/bold]")
        raise KeyboardInterrupt from None
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        way_out = (
            "begin it again" if wish.is_simulated else f"go on with farflung pretrain {folder / RUN_FILE} --resume"
        )
        raise ValueError(f"{folder} takes no more ({error.strerror}): make room there, then {way_out}") from None


def _train(session: "_Session", wish: Wish) -> None:
    try:
        tensors = session.simulate() if wish.is_simulated else session.lead(wish)
    finally:
        session.close()
    session.finish(tensors, "virtual seconds" if wish.is_simulated else "seconds")


def _with_folder(run: RunFile, wish: Wish) -> RunFile:
    """The default run never stands in the way of the one before it; a named folder is the user's word."""
    is_named = wish.path is not None or any(one.startswith("run.") for one in wish.overrides)
    if wish.is_resumed or is_named:
        return run
    names = (run.run.folder if number == 1 else f"{run.run.folder}-{number}" for number in range(1, 10_000))
    free = next(name for name in names if not (Path(name) / RUN_FILE).exists())
    return replace(run, run=replace(run.run, folder=free))


def _begin(run: RunFile, wish: Wish) -> Path:
    """The run's folder with its run file in it.

    Raises:
        ValueError: it holds a run already (or, to resume, none or another); nothing is overwritten.
    """
    folder = Path(run.run.folder).expanduser()
    kept = folder / RUN_FILE
    if wish.is_resumed:
        _check_same(run, kept)
    elif kept.exists():
        raise ValueError(f"{folder} already holds a run: give --resume to go on with it, or choose another run.folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(kept, toml_text(tables_of(run)).encode(), mode=0o644)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): choose another run.folder") from None
    return folder


def _check_same(run: RunFile, kept: Path) -> None:
    if not kept.exists():
        raise ValueError(f"there is no run in {kept.parent} to resume: start it without --resume")
    before, now = tables_of(run_from(read_toml(kept))), tables_of(run)
    if now["training"]["tokens"] >= before["training"]["tokens"]:
        before["training"]["tokens"] = now["training"]["tokens"]
    for section in before:
        if section not in MAY_CHANGE and before[section] != now[section]:
            keys = _differing(before[section], now[section])
            raise ValueError(
                f"the run in {kept.parent} was begun with another [{section}]{keys}: resume it with "
                f"`farflung pretrain {kept} --resume`, or choose another run.folder"
            )


def _differing(before: object, now: object) -> str:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return ""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return f" ({', '.join(keys)})"


class _Session:
    """One sitting at a run: its history, logs and bars."""

    def __init__(self, run: RunFile, materials: Materials, folder: Path, console: Console) -> None:
        self._run = run
        self._materials = materials
        self._folder = folder
        self._console = console
        self._history = read_history(folder / LOG_NAME)
        self._gathered = Gathered(engine_of(run).seats(run), self._history, self._on_point, self._on_decision)
        self._log = JsonLines(folder / LOG_NAME)
        self._recorders = open_recorders(run.logging, folder, run.run.name, tables_of(run))
        self._bars = Bars(self._history, self._gathered.seats, run.training.tokens, console)
        self._shown_at = 0.0
        self._logged_at = 0.0
        self._disk_error: OSError | None = None

    @property
    def summary(self) -> str:
        """One sentence before it begins."""
        run = self._run
        num_parameters = sum(tensor.numel() for tensor in self._materials.model().parameters())
        return (
            f"{run.algorithm.name}: {num_parameters:,} parameters, {run.training.tokens:,} tokens, {run.num_workers} "
            f"workers in {', '.join(region.name for region in run.regions)}; kept in {self._folder}"
        )

    def simulate(self) -> Tensors:
        """Train on virtual time."""
        with self._bars:
            return SimulatedRun(self._run, self._materials, self._gathered).train()

    def lead(self, wish: Wish) -> Tensors:
        """Train with processes."""
        place = replace(wish.place, home=self._folder / "lead", is_rendezvous=True)
        run = LocalRun(
            self._run,
            self._materials,
            self._gathered,
            self._folder,
            place,
            wish.launcher,
            tell=self._console.print,
            show=self._show,
        )
        with self._bars:
            return run.train(is_resumed=wish.is_resumed)

    def _on_point(self, point: Point) -> None:
        self._write(report_entry(point))
        if point.seconds - self._logged_at >= self._run.logging.every_seconds:
            self._logged_at = point.seconds
            self._write(bytes_entry(point.seconds, self._history.link_bytes))
        values = {f"loss/{point.seat}": point.loss} if point.loss is not None else {}
        if point.staleness is not None:
            values[f"staleness/{point.region}"] = point.staleness
        for recorder in self._recorders:
            recorder.scalars(self._history.num_tokens(), values)
        self._show()

    def _on_decision(self, seconds: float, seat: str, sentence: str) -> None:
        self._write(decision_entry(seconds, seat, sentence))

    def _write(self, entry: dict[str, Any]) -> None:
        """To the log; a disk that does not take it ends the run when the bars are next shown, not amid a message."""
        try:
            self._log.write(entry)
        except OSError as error:
            self._disk_error = error

    def _show(self) -> None:
        if self._disk_error is not None:
            raise self._disk_error
        now = time.monotonic()
        if now - self._shown_at >= SHOW_SECONDS:
            self._shown_at = now
            self._bars.show()

    def close(self) -> None:
        """End the logs."""
        self._write(bytes_entry(self._history.seconds, self._history.link_bytes))
        self._log.close()
        for recorder in self._recorders:
            recorder.close()

    def finish(self, tensors: Tensors, time_name: str) -> None:
        """Score and write the model, draw the plot, say where all lies."""
        model = trained_model(self._materials, tensors)
        loss = validation_loss(self._materials, model)
        target = write_model(self._folder, self._materials, model)
        plot = write_plot(self._folder, self._history, f"{self._run.run.name}: {self._run.algorithm.name}", time_name)
        summary = {
            "validation_loss": loss,
            "num_tokens": self._history.num_tokens(),
            "num_steps": self._history.num_steps(),
            "seconds": self._history.seconds,
            "counters": self._gathered.counters,
            "link_bytes": bytes_entry(0.0, self._history.link_bytes)["links"],
        }
        (self._folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        self._console.print(terminal(self._history, time_name))
        self._console.print(
            f"validation loss {loss:.3f} after {self._history.num_tokens():,} tokens in {self._history.seconds:.0f} "
            f"{time_name}; plot: {plot}"
        )
        self._console.print(f"model: {target}; serve it with: [bold]farflung serve {target} --new-swarm[/bold]")
