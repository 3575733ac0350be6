"""Real nodes for tests: in this process (`Swarm`), and in processes of their own (`Program`)."""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from farflung.runtime.limits import NetworkLimits
from farflung.runtime.node import RealNode, open_node
from farflung.wire.certificate import TicketRole
from farflung.wire.ticket import Ticket
from farflung.world.address import PeerId
from farflung.world.doors import Contact
from tests.runtime.echo import Echo

PATIENCE_SECONDS = 60.0


async def eventually(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until `condition()` is true; fail when it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


class Swarm:
    """Nodes of one swarm in this process; the first one founds it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.nodes: list[RealNode] = []
        self.echoes: dict[PeerId, Echo] = {}

    async def add(
        self,
        *,
        role: TicketRole = TicketRole.SERVER,
        is_dial_only: bool = False,
        limits: NetworkLimits | None = None,
        ticket: Ticket | None = None,
        port: int = 0,
    ) -> tuple[RealNode, Echo]:
        """One more node, with an echo on it."""
        home = self._folder / f"home-{len(self.nodes)}"
        if not self.nodes:
            node = await open_node(new_swarm="test", home=home, limits=limits, port=port)
        else:
            ticket = ticket or self.ticket(role)
            node = await open_node(ticket=ticket, home=home, is_dial_only=is_dial_only, limits=limits, port=port)
        self.nodes.append(node)
        echo = self.echoes[node.identity.peer] = Echo(node)
        return node, echo

    def ticket(self, role: TicketRole = TicketRole.SERVER, seconds: float = 3600.0) -> Ticket:
        """A ticket of the founder's."""
        now = time.time()
        return self.nodes[0].ticket.invite(role, now + seconds, now)

    async def close(self) -> None:
        for node in reversed(self.nodes):
            await node.close()


@pytest_asyncio.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[Swarm]:
    made = Swarm(tmp_path)
    try:
        yield made
    finally:
        await made.close()


def introduce(node: RealNode, other: RealNode, *endpoints: str) -> None:
    """Tell `node` how to reach `other` (at `endpoints`, if given)."""
    contact = Contact(endpoints=endpoints, relays=other.contact.relays) if endpoints else other.contact
    node.network.introduce(other.identity.peer, contact)


class Program:
    """A node in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.seen: list[dict[str, object]] = []
        self.peer = PeerId("")
        self.endpoints: tuple[str, ...] = ()
        self._reading = asyncio.create_task(self._read())

    async def tell(self, **order: Any) -> None:
        """Give an order."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()

    async def ask(self, peer: PeerId, number: int, num_bytes: int = 0, num_bytes_back: int = 0) -> None:
        """Let it send a question."""
        await self.tell(ask=peer, number=number, num_bytes=num_bytes, num_bytes_back=num_bytes_back)

    async def until(self, seconds: float = PATIENCE_SECONDS, **entry: Any) -> dict[str, object]:
        """The first thing it told that has all of `entry`; waits for it."""

        def found() -> list[dict[str, object]]:
            return [seen for seen in self.seen if entry.items() <= seen.items()]

        await eventually(found, seconds)
        return found()[0]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def close(self) -> None:
        """End it however it is."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.seen.append(json.loads(line))


@pytest_asyncio.fixture
async def program(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Program]]]:
    """Starts nodes as processes; the first founds the swarm, the others join it with its ticket."""
    programs: list[Program] = []

    async def start(*options: str) -> Program:
        home, ticket_file = tmp_path / f"program-{len(programs)}", tmp_path / "ticket"
        found = [] if programs else ["--found"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.runtime.echo", str(home), str(ticket_file), *found, *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        started = Program(process)
        programs.append(started)
        await eventually(lambda: started.seen, seconds=180.0)
        started.peer = PeerId(str(started.seen[0]["ready"]))
        endpoints = started.seen[0]["endpoints"]
        assert isinstance(endpoints, list)
        started.endpoints = tuple(map(str, endpoints))
        return started

    try:
        yield start
    finally:
        for started in programs:
            await started.close()


@pytest.fixture
def ticket_file(tmp_path: Path) -> Path:
    """Where the first program leaves its ticket."""
    return tmp_path / "ticket"
