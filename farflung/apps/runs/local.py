"""A run on real machines: led here, with seats that are started as local processes, and others that join."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farflung.apps.processes import ChildFailed
from farflung.apps.runs.cache import CACHE_VARIABLE, cache_of_this_machine
from farflung.apps.runs.gateways import Ways, open_gateways
from farflung.apps.runs.job import AnyJob, Materials
from farflung.apps.runs.launchers import Launcher, LauncherName, Started, launcher_of
from farflung.apps.runs.lead import Gathered, Lead
from farflung.apps.runs.lives import Lives
from farflung.apps.runs.meeting import open_lead
from farflung.apps.runs.messages import LEAD_ACTOR
from farflung.apps.runs.run import Run
from farflung.apps.runs.seats import WORKER, Seat
from farflung.apps.tickets import write_ticket
from farflung.apps.wiring import Place, SwarmNode
from farflung.wire.certificate import TicketRole
from farflung.world.host import Host
from farflung.world.version import __version__

LOOK_SECONDS = 0.1
STOP_SECONDS = 60.0
"""How long workers may take to come to the end of a round and save it."""
LEAVE_SECONDS = 15.0
TICKET_SECONDS = 365 * 86400.0
RESTART_SECONDS = 1.0
SEATS_FOLDER = "seats"
RESULT_FOLDER = "result"


class Interrupted(Exception):
    """Ctrl-C or a termination: the seats have saved what they know, unless the user could not wait for it."""

    def __init__(self, *, is_hurried: bool) -> None:
        super().__init__()
        self.is_hurried = is_hurried


@dataclass(slots=True)
class SeatProcess:
    """The processes, one after another, that sit on one seat."""

    seat: Seat
    home: Path
    child: Started | None = None
    num_lives: int = 0
    ends: Lives = field(default_factory=Lives)
    began_at: float = 0.0
    restart_at: float = 0.0


class LocalRun:
    """One run led by this process."""

    def __init__(
        self,
        job: AnyJob,
        run: Run,
        materials: Materials,
        gathered: Gathered,
        folder: Path,
        place: Place,
        launcher: LauncherName,
        *,
        tell: Callable[[str], object],
        show: Callable[[], object],
    ) -> None:
        """`tell` gets sentences for the user, `show` is called often, to bring bars up to date."""
        self._job = job
        self._run = run
        self._engine = job.engine(run)
        self._folder = folder
        self._place = place
        self._launcher: LauncherName = launcher
        self._tell = tell
        self._show = show
        self._num_interrupts = 0
        self._ways: Ways | None = None
        """Where [[links]] shape them."""
        self._seats = [
            SeatProcess(seat, folder / SEATS_FOLDER / seat.name) for seat in gathered.seats if not seat.is_remote
        ]
        self._lead = Lead(
            gathered,
            job=job.name,
            run=json.dumps(job.form.tables(run)),
            materials=materials.fingerprint,
            version=__version__,
            charter=lambda seat: job.charter(run, materials, seat, place.home),
        )

    @property
    def homes(self) -> dict[int, Path]:
        """Where the seats that are started here keep what they know."""
        return {process.seat.index: process.home for process in self._seats}

    def work(self, *, is_resumed: bool) -> Any:
        """Run to the end of the budget; the run's result.

        Raises:
            Interrupted: by Ctrl-C or a termination.
            ChildFailed: a seat fails again and again.
        """
        if is_resumed and not self._engine.prepare_resume(self.homes, tuple(self._lead.seats)):
            self._tell("nothing had been saved when this run ended: it begins anew")
        for process in self._seats:
            process.home.mkdir(parents=True, exist_ok=True)
        num_ranks = sum(process.seat.num_ranks for process in self._seats)
        logs = self._folder / SEATS_FOLDER
        with contextlib.ExitStack() as stack:
            if self._run.run.is_shaped:
                names = [region.name for region in self._run.regions]
                self._ways = stack.enter_context(open_gateways(names, self._run.links, logs))
            asyncio.run(self._lead_it(stack.enter_context(launcher_of(self._launcher, logs, num_ranks))))
        return self._result()

    def _result(self) -> Any:
        for seat in self._engine.result_seats(tuple(self._lead.seats)):
            home = self.homes.get(seat.index)
            if home is not None and (home / RESULT_FOLDER).is_dir():
                return self._job.kept(home / RESULT_FOLDER)
        raise ChildFailed("the run is over and nobody has left its result; see the logs in " + str(self._folder))

    async def _lead_it(self, launcher: Launcher) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        node, self._place = await open_lead(self._place, self._run.run.name, self._tell)
        try:
            host = node.host(self._lead, LEAD_ACTOR)
            await node.wait_joined()
            ticket = self._write_ticket(node)
            while not self._lead.is_over and not self._num_interrupts:
                self._look_after(launcher, ticket)
                self._show()
                await asyncio.sleep(LOOK_SECONDS)
            is_over = self._lead.is_over
            await self._stop(host, "the run is over" if is_over else "its owner has stopped it")
        finally:
            await node.close()
        if not is_over:
            raise Interrupted(is_hurried=self._num_interrupts > 1)

    def _interrupt(self) -> None:
        self._num_interrupts += 1
        if self._num_interrupts == 1:
            self._tell("stops: workers bring in what they have done; Ctrl-C again ends them at once")

    def _write_ticket(self, node: SwarmNode) -> str:
        now = time.time()
        ticket = node.node.ticket.invite(TicketRole.WORKER, now + TICKET_SECONDS, now).text()
        path = self._folder / "ticket"
        write_ticket(path, ticket)
        self._tell(f"another machine takes part with: farflung join $(cat {path})")
        for seat in self._lead.seats:
            if seat.is_remote and seat.kind != WORKER:
                self._tell(f"{seat.name} is waited for: there, farflung join TICKET --seat {seat.index}")
        return ticket

    # Processes

    def _look_after(self, launcher: Launcher, ticket: str) -> None:
        """Start the seats whose process is not there."""
        now = time.monotonic()
        for process in self._seats:
            if process.child is not None:
                if process.child.is_running or process.seat.index in self._lead.ended:
                    continue
                self._ended(process, now)
            if now >= process.restart_at:
                self._start(launcher, process, ticket, now)

    def _ended(self, process: SeatProcess, now: float) -> None:
        child, process.child = process.child, None
        assert child is not None
        has_reported = self._lead.gathered.has_reported(process.seat.index)
        if process.ends.ended(child.status, now - process.began_at, has_reported=has_reported):
            last = "\n".join(child.lines()[-15:])
            raise ChildFailed(f"{process.seat.name} cannot go on; it last wrote:\n{last}")
        process.restart_at = now + RESTART_SECONDS
        self._tell(f"{process.seat.name} ended with status {child.status} and is started again")

    def _start(self, launcher: Launcher, process: SeatProcess, ticket: str, now: float) -> None:
        process.num_lives += 1
        process.began_at = now
        arguments = ["join", "--seat", str(process.seat.index)]
        ways, region = self._ways, process.seat.region
        host = self._place.host if ways is None else ways.hosts[region]
        home = process.home.absolute()  # who reads this may stand in another folder
        arguments += ["--result", str(home / RESULT_FOLDER), "--host", host]
        num_ranks = process.seat.num_ranks
        arguments += ["--ranks", str(max(1, num_ranks))]
        threads = str(self._run.num_threads)
        variables = {
            "FARFLUNG_TICKET": ticket,
            "FARFLUNG_HOME": str(home),
            CACHE_VARIABLE: str(cache_of_this_machine().absolute()),
            "OMP_NUM_THREADS": threads,
            **({} if ways is None else ways.variables(region)),
        }
        name = f"{process.seat.name}-{process.num_lives}"
        process.child = launcher.start(name, arguments, variables, num_ranks=num_ranks)

    # The end

    async def _stop(self, host: Host, reason: str) -> None:
        """Workers first, so that servers hear the last of them; whoever is slow is ended by the launcher."""
        workers = [one for one in self._seats if one.seat.kind == WORKER]
        servers = [one for one in self._seats if one.seat.kind != WORKER]
        for group, seconds in ((workers, STOP_SECONDS), (servers, LEAVE_SECONDS)):
            indices = [one.seat.index for one in group]
            indices += [seat.index for seat in self._lead.seats if seat.is_remote and group is workers]
            host.perform(self._lead.stop(indices, reason))
            deadline = time.monotonic() + seconds
            while self._num_interrupts < 2 and time.monotonic() < deadline and any(map(_is_running, group)):
                self._show()
                await asyncio.sleep(LOOK_SECONDS)


def _is_running(process: SeatProcess) -> bool:
    return process.child is not None and process.child.is_running
