"""A swarm of real server processes that tests kill and freeze, kept complete: two servers for either half."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from farflung.apps.fork_server import Forked, ForkServer
from farflung.apps.tickets import invite
from farflung.systems.swarm.info import ServerInfo
from farflung.wire.identity import Identity
from farflung.wire.ticket import Ticket
from farflung.world.address import PeerId

ROOT = Path(__file__).parents[2]
HALVES = ("0:2", "2:4")
PATIENCE_SECONDS = 180.0


def wait_until(holds: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Return once the condition holds; fail, naming it, when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@dataclass
class Program:
    """One `farflung` process."""

    process: Forked
    home: Path
    log: Path
    blocks: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def peer(self) -> PeerId:
        """Who it is, once it has a key."""
        return Identity((self.home / "identity.key").read_bytes()).peer

    @property
    def status(self) -> int:
        """With what it ended."""
        return self.process.wait(PATIENCE_SECONDS)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As `kill -9` does; returns when it is gone."""
        if self.is_alive:
            self.send(signal.SIGKILL)
        wait_until(lambda: not self.is_alive, f"process {self.pid} dies")


@dataclass
class Fleet:
    """The founder, which serves another model so that nobody's words depend on it, and the servers of the halves."""

    folder: Path
    model: Path
    other_model: Path
    forge: ForkServer
    programs: list[Program] = field(default_factory=list[Program])
    servers: list[Program] = field(default_factory=list[Program])
    sites: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of servers, by their blocks; those of others say none."""

    def found(self) -> None:
        """Start the founder and the servers."""
        self.founder = self._serve(self.other_model, "0:1", "--new-swarm", "--ticket-file", str(self.ticket_file))
        wait_until(self.ticket_file.exists, "the founder's ticket")
        self.complete()

    @property
    def ticket_file(self) -> Path:
        """Where the founder leaves its own."""
        return self.folder / "ticket"

    @property
    def admin_ticket(self) -> str:
        return self.ticket_file.read_text().strip()

    @property
    def num_meetings(self) -> int:
        """Rendezvous nodes that the founder's ticket names."""
        return len(Ticket.parse(self.admin_ticket, time.time()).meetings)

    def ticket(self, role: str = "client") -> str:
        return invite(self.admin_ticket, role, "1h", self.folder)

    def start(self, *arguments: str, home: Path | None = None) -> Program:
        """A process of its own, of the command line."""
        home = home or self.folder / f"home-{len(self.programs)}"
        log = self.folder / f"log-{len(self.programs)}"
        program = Program(self.forge.start(arguments, {"FARFLUNG_HOME": str(home)}, log), home, log)
        self.programs.append(program)
        return program

    def serve(self, blocks: str) -> Program:
        """One more server; does not wait for it."""
        program = self._serve(self.model, blocks, "--join", self.admin_ticket)
        self.servers.append(program)
        return program

    def _serve(self, model: Path, blocks: str, *options: str) -> Program:
        site = ["--site", self.sites[blocks]] if blocks in self.sites else []
        program = self.start("serve", str(model), "--blocks", blocks, "--threads", "1", *site, *options)
        program.blocks = blocks
        return program

    def complete(self) -> None:
        """Bring the swarm back to two serving processes for each half, and wait until they serve."""
        self.servers = [server for server in self.servers if server.is_alive]
        for blocks in HALVES:
            for _ in range(2 - sum(server.blocks == blocks for server in self.servers)):
                self.serve(blocks)
        for server in [self.founder, *self.servers]:
            self.wait_serving(server)

    def wait_serving(self, server: Program) -> None:
        """Wait until a server has said that it serves."""
        wait_until(lambda: "serving blocks" in server.text or not server.is_alive, f"{server.blocks} is served")
        assert server.is_alive or server is self.founder, server.text

    def of(self, peer: PeerId) -> Program:
        """The server that is `peer`."""
        return next(server for server in self.servers if server.peer == peer)

    def replace(self, server: Program) -> None:
        """Kill a server as `kill -9` does, and start another for its blocks, which does not come in time to help."""
        server.kill()
        self.servers.remove(server)
        self.serve(server.blocks)

    def sees(self, announced: Mapping[PeerId, ServerInfo]) -> bool:
        """Whether a directory shows all servers of the fleet."""
        return all(server.peer in announced for server in self.servers)

    def close(self) -> None:
        for program in self.programs:
            program.kill()
