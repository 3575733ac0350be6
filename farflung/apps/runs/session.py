"""One sitting at a run, on its lead: the history, logs and bars that reports go to, and what is left at the end."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from farflung.apps.metrics.run import RunCollector
from farflung.apps.runs.history import Point, bytes_entry, decision_entry, read_history, report_entry
from farflung.apps.runs.job import AnyJob, Ended, Materials
from farflung.apps.runs.launchers import LauncherName
from farflung.apps.runs.lead import Gathered
from farflung.apps.runs.local import LocalRun
from farflung.apps.runs.logs import LOG_NAME, JsonLines, open_recorders
from farflung.apps.runs.lone import LoneRun
from farflung.apps.runs.run import Run
from farflung.apps.runs.simulated import SimulatedRun
from farflung.apps.wiring import Place

SHOW_SECONDS = 0.25
LEAD_FOLDER = "lead"


class Session:
    """Begins where the log in the folder ends."""

    def __init__(self, job: AnyJob, run: Run, materials: Materials, folder: Path, console: Console) -> None:
        self._job = job
        self._run = run
        self._materials = materials
        self._folder = folder
        self._console = console
        self._history = read_history(folder / LOG_NAME)
        self._lone = job.lone(run)
        seats = job.engine(run).seats(run) if self._lone is None else [self._lone.seat]
        self._gathered = Gathered(seats, self._history, self._on_point, self._on_decision)
        self._log = JsonLines(folder / LOG_NAME)
        self._recorders = open_recorders(run.logging, folder, run.run.name, job.form.tables(run))
        self._bars = job.bars(run, materials, self._history, self._gathered.seats, console)
        self._shown_at = 0.0
        self._logged_at = 0.0
        self._disk_error: OSError | None = None

    @property
    def collector(self) -> RunCollector:
        """What Prometheus hears."""
        return RunCollector(self._run, self._history)

    def tell(self, sentence: str) -> None:
        """To the user, above the bars."""
        self._console.print(sentence)

    def simulate(self) -> Any:
        """Do the run on virtual time; its result."""
        with self._bars:
            result = SimulatedRun(self._job, self._run, self._materials, self._gathered).work()
            self._bars.show()
        return result

    @property
    def is_alone(self) -> bool:
        """The run is done in this process."""
        return self._lone is not None

    def work_alone(self, *, is_resumed: bool) -> Any:
        """Do the run in this process; its result."""
        assert self._lone is not None
        run = LoneRun(self._lone, self._gathered, self._folder, tell=self.tell, show=self._show)
        with self._bars:
            result = run.work(self._run, self._materials, is_resumed=is_resumed)
            self._bars.show()
        return result

    def lead(self, place: Place, launcher: LauncherName, *, is_resumed: bool) -> Any:
        """Do the run with processes; its result."""
        run = LocalRun(
            self._job,
            self._run,
            self._materials,
            self._gathered,
            self._folder,
            replace(place, home=self._folder / LEAD_FOLDER, is_rendezvous=True),
            launcher,
            tell=self.tell,
            show=self._show,
        )
        with self._bars:
            result = run.work(is_resumed=is_resumed)
            self._bars.show()
        return result

    def _on_point(self, point: Point) -> None:
        self._write(report_entry(point))
        if point.seconds - self._logged_at >= self._run.logging.every_seconds:
            self._logged_at = point.seconds
            self._write(bytes_entry(point.seconds, self._history.link_bytes))
        values = {f"loss/{point.seat}": point.loss} if point.loss is not None else {}
        if point.staleness is not None:
            values[f"staleness/{point.region}"] = point.staleness
        values |= {f"{name}/{point.seat}": value for name, value in point.values.items()}
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

    def leave(self, result: Any, time_name: str) -> None:
        """Write what the user gets, and say where it lies."""
        ended = Ended(
            run=self._run,
            materials=self._materials,
            folder=self._folder,
            history=self._history,
            counters=self._gathered.counters,
            result=result,
            time_name=time_name,
        )
        self._job.leave(ended, self._console)
