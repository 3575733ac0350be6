"""How a run reaches the blocks of its model: a swarm that there is, or block servers that it starts on this machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.swarm.servers import LocalServers
from farflung.apps.library import ConnectedModel, connect_model
from farflung.apps.tickets import find_ticket
from farflung.apps.wiring import Connection
from farflung.model.source import ModelSource
from farflung.systems.swarm.config import SessionConfig

SERVERS_FIRST_TRY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the command line says about it."""

    ticket: str | None = None
    """None: that of FARFLUNG_TICKET, if servers are not started here."""
    num_servers: int | None = None
    """Start so many here; None: only where nothing else is said about model and swarm."""

    def check(self, run: FinetuneRun, source: ModelSource) -> None:
        """Whether there is a way in, before anything is started.

        Raises:
            ValueError: no ticket, a bad one, one ticket too many, more servers than blocks.
        """
        if self.num_servers is not None and self.ticket is not None:
            raise ValueError("--join reaches a swarm that there is, and --servers starts one here: give one of them")
        num_servers = self.num_local(run)
        if num_servers is None:
            try:
                find_ticket(self.ticket)
            except ValueError as error:
                raise ValueError(f"{error}; or --servers 2 starts block servers on this machine") from None
        elif not 1 <= num_servers <= source.num_blocks:
            raise ValueError(
                f"--servers {num_servers}: {source.name} has {source.num_blocks} blocks, and each server holds one at "
                f"least"
            )

    def num_local(self, run: FinetuneRun) -> int | None:
        """Servers to start on this machine; None: none, there is a swarm."""
        if self.num_servers is None and self.ticket is None and not run.model.path:
            return SERVERS_FIRST_TRY
        return self.num_servers

    @contextmanager
    def connected(
        self, run: FinetuneRun, source: ModelSource, folder: Path, tell: Callable[[str], object]
    ) -> Iterator[ConnectedModel]:
        """The model with its blocks in a swarm; on leaving, servers that were started here end.

        Raises:
            ValueError: as `check`.
            FarflungError: nobody of the swarm answers.
            ChildFailed: a server that was started here ended.
        """
        num_servers = self.num_local(run)
        if num_servers is None:
            with _connected(find_ticket(self.ticket), run, source, tell) as model:
                yield model
            return
        with (
            LocalServers(folder, source, num_servers, run) as servers,
            _connected(servers.ticket, run, source, tell) as model,
        ):
            servers.wait_serving(lambda: model.why_unavailable() is None)
            yield model


@contextmanager
def _connected(
    ticket: str, run: FinetuneRun, source: ModelSource, tell: Callable[[str], object]
) -> Iterator[ConnectedModel]:
    settings = run.swarm
    config = replace(
        SessionConfig(),
        codec=settings.codec,
        wait_seconds_max=settings.wait_seconds_max,
        micro_batch_tokens_max=settings.micro_batch_tokens,
    )
    told: set[str] = set()

    def on_wait(sentence: str, seconds_left: float) -> None:
        if sentence not in told:
            told.add(sentence)
            tell(f"{sentence} Waits for {seconds_left:.0f} s.")

    with Connection(ticket) as connection:
        yield connect_model(source, connection, config=config, dtype=torch.float32, on_wait=on_wait)
