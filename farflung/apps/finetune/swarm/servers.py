"""Block servers on this machine, for a first try of a run that otherwise joins a swarm."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.processes import Supervisor
from farflung.model.source import ModelSource
from farflung.systems.swarm.info import equal_ranges

START_SECONDS_MAX = 120.0
LOGS = "servers"


class LocalServers:
    """Use in `with`: equal parts of a model on so many processes, which found a swarm of their own."""

    def __init__(self, folder: Path, source: ModelSource, num_servers: int, run: FinetuneRun) -> None:
        """`folder`: that of the run, which gets their logs."""
        self._logs = folder / LOGS
        self._source = source
        self._num_servers = num_servers
        self._num_threads = run.num_threads
        self.ticket = ""

    def __enter__(self) -> Self:
        """Returns once the swarm is founded."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._homes = TemporaryDirectory(prefix="farflung-servers-")
        self._supervisor = Supervisor(self._logs)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._supervisor.stop()
        self._homes.cleanup()

    def wait_serving(self, holds: Callable[[], bool]) -> None:
        """Returns once all blocks are served, as the client sees it.

        Raises:
            ChildFailed: a server ended, or the time is over.
        """
        self._supervisor.wait_until(holds, seconds_max=START_SECONDS_MAX, what="all blocks are served")

    def _start(self) -> None:
        ticket = Path(self._homes.name) / "ticket"
        first, *others = equal_ranges(self._source.num_blocks, self._num_servers)
        self._serve(0, str(first), "--new-swarm", "--ticket-file", str(ticket))
        self._supervisor.wait_until(ticket.exists, seconds_max=START_SECONDS_MAX, what="the swarm is founded")
        self.ticket = ticket.read_text(encoding="ascii").strip()
        for number, blocks in enumerate(others, start=1):
            self._serve(number, str(blocks), "--join", self.ticket)

    def _serve(self, number: int, blocks: str, *options: str) -> None:
        model, threads = self._source.location, str(self._num_threads)
        self._supervisor.command(
            f"server-{number}",
            ("serve", model, "--blocks", blocks, "--threads", threads, *options),
            {"FARFLUNG_HOME": str(Path(self._homes.name) / f"home-{number}")},
        )
