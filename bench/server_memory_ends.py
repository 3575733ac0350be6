"""The processes of `bench.server_memory`: parameter servers on real nodes, and a client that has no model.

python -m bench.server_memory_ends HOME VALUES UPDATES             the global server; prints a ticket
python -m bench.server_memory_ends HOME VALUES UPDATES TICKET      the local server below it

A server answers each line of its input with a line of JSON about itself, and leaves when its input ends.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from farflung.learn.parameters import Tensors
from farflung.runtime.node import RealNode, open_node
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.global_server import GlobalServer
from farflung.systems.hierarchy.local_server import LocalServer
from farflung.systems.hierarchy.merge import decode_part, encode_part, layout, part_bytes
from farflung.systems.hierarchy.messages import ACTOR, ModelPart, RunIdentity, UpdateHeader
from farflung.systems.hierarchy.uplink import Phase, Uplink
from farflung.wire.certificate import TicketRole
from farflung.wire.parts import plan_of
from farflung.wire.ticket import Ticket
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact
from farflung.world.effects import Effect, Send
from farflung.world.host import Host
from farflung.world.mailbox import Mailbox, PeerLost
from farflung.world.version import __version__

WIDTH = 4096
START, DELTA = 0.5, 0.25
"""Every value of the model at the beginning, and of every update."""
PUSHER = "pusher"
TICKET_SECONDS = 86400.0
LINE_BYTES_MAX = 1 << 20


def settings(num_updates: int) -> HierarchyConfig:
    """Each update is pushed upward at once, moves the momentum of both servers, and is followed by a saved state."""
    return HierarchyConfig(
        budget_steps=num_updates + 1, updates_per_push=1, local_delay=1, global_delay=1, updates_per_snapshot=1
    )


def shapes(num_values: int) -> dict[str, tuple[int, ...]]:
    """Matrices and vectors of about so many values together."""
    num_layers = max(1, round(num_values / (WIDTH * (WIDTH + 1))))
    named: dict[str, tuple[int, ...]] = {}
    for layer in range(num_layers):
        named |= {f"layers.{layer}.weight": (WIDTH, WIDTH), f"layers.{layer}.bias": (WIDTH,)}
    return named


def memory_bytes(field: str) -> int:
    """Of this process: "VmRSS", what it has now, or "VmHWM", the most it ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def disk_bytes(home: Path) -> int:
    """Of all files below a folder."""
    total = 0
    for path in home.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


async def serve(home: Path, num_values: int, num_updates: int, ticket: str | None) -> None:
    """One server, from a model of constants."""
    torch.set_num_threads(1)
    node = await open_node(ticket=ticket, new_swarm=None if ticket else "bench", home=home)
    before, config = memory_bytes("VmRSS"), settings(num_updates)
    given = {name: torch.full(shape, START) for name, shape in shapes(num_values).items()}
    if ticket is None:
        server: GlobalServer | LocalServer = GlobalServer.open(node.world, config, given)
    else:
        above = Address(node.ticket.meetings[0].peer, ACTOR)
        server = LocalServer.open(node.world, config, given, name="eu", above=above)
    del given
    host = Host(server, node.world, ACTOR)
    now = time.time()
    invitation = node.ticket.invite(TicketRole.ADMIN, now + TICKET_SECONDS, now).text() if ticket is None else ""
    answer(ticket=invitation, peer=node.identity.peer, endpoints=node.endpoints)
    disk = 0
    async for line in lines_of_input():
        disk = max(disk, disk_bytes(home))
        report, extra = server.report(), {}
        if line == "values":
            held = server.state.model.parameters.values()
            extra = {"low": min(float(one.min()) for one in held), "high": max(float(one.max()) for one in held)}
        answer(
            version=report.version,
            merges=report.num_merges,
            before=before,
            peak=memory_bytes("VmHWM"),
            disk=disk,
            **extra,
        )
    host.stop()
    await node.close()


def answer(**fields: object) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(fields), flush=True)


async def lines_of_input() -> AsyncIterator[str]:
    """Lines of standard input until it ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().strip()


@dataclass(frozen=True)
class ServerProcess:
    """A server in a process of its own."""

    process: asyncio.subprocess.Process
    ticket: str
    peer: PeerId
    endpoints: tuple[str, ...]

    async def ask(self, line: str = "") -> dict[str, Any]:
        """What it says of itself now."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{line}\n".encode())
        return json.loads(await self.process.stdout.readline())


@contextlib.asynccontextmanager
async def server_process(*arguments: object) -> AsyncIterator[ServerProcess]:
    """A running server; see the usage of this module."""
    program = [sys.executable, "-m", "bench.server_memory_ends", *map(str, arguments)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe, limit=LINE_BYTES_MAX)
    assert process.stdin is not None and process.stdout is not None
    try:
        ready = json.loads(await process.stdout.readline())
        yield ServerProcess(process, ready["ticket"], PeerId(ready["peer"]), tuple(ready["endpoints"]))
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


class Pusher:
    """A client of the local server through the real link: makes each part as it is sent, and checks what comes back."""

    def __init__(self, node: RealNode, server: ServerProcess, num_values: int, num_updates: int) -> None:
        self._node = node
        self._config = settings(num_updates)
        # Only names and shapes are needed, and no memory.
        model: Tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes(num_values).items()}
        self._parts = plan_of(model, self._config.values_per_part)
        self._uplink = Uplink(
            self._config,
            RunIdentity(__version__, self._config.fingerprint, layout(model)),
            PUSHER,
            Address(server.peer, ACTOR),
            len(self._parts),
            part_bytes=part_bytes(self._parts),
            new_instance=lambda: PUSHER,
            send_part=self._send_part,
            take_part=self._take_part,
        )
        self.values: set[float] = set()
        """Different values of the newest model; an honest one has one."""
        node.network.introduce(server.peer, Contact(endpoints=server.endpoints))

    async def join(self, mailbox: Mailbox) -> None:
        """Until the first model is here."""
        self._perform(mailbox, self._uplink.join(self._now()))
        await self._until_model(mailbox)

    async def push(self, mailbox: Mailbox, sequence: int) -> None:
        """Send an update, and wait for the model that answers it."""
        model = self._uplink.model
        assert model is not None
        header = UpdateHeader(len(self._parts), 1, 1, model.version, self._uplink.held, 1.0, 1.0, -1, {})
        self.values.clear()
        self._perform(mailbox, self._uplink.upload(sequence, header, self._now()))
        await self._until_model(mailbox)

    async def _until_model(self, mailbox: Mailbox) -> None:
        while self._uplink.phase is not Phase.IDLE:
            received = await mailbox.receive(self._uplink.ask_at)
            if received is None:
                self._perform(mailbox, self._uplink.wake(self._now()))
            elif isinstance(received[1], PeerLost):
                self._uplink.lost(received[1].peer, self._now())
            else:
                self._perform(mailbox, self._uplink.receive(*received, self._now()))
            assert self._uplink.refused is None, self._uplink.refused

    def _send_part(self, index: int) -> list[Effect]:
        part = self._parts[index]
        values = {name: torch.full((length,), DELTA) for name, _, length in part}
        return [self._uplink.part(index, encode_part(values, part))]

    def _take_part(self, part: ModelPart) -> list[Effect]:
        for values in decode_part(part.slices, self._parts[part.index]).values():
            self.values |= {float(values.min()), float(values.max())}
        return []

    def _perform(self, mailbox: Mailbox, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                mailbox.send(effect.destination, effect.message)

    def _now(self) -> float:
        return self._node.world.clock.now()


def parsed(ticket: str) -> Ticket:
    """A ticket that a server printed."""
    return Ticket.parse(ticket, time.time())


if __name__ == "__main__":
    _, folder, values, updates, *tickets = sys.argv
    asyncio.run(serve(Path(folder), int(values), int(updates), tickets[0] if tickets else None))
