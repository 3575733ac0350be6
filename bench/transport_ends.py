"""Both ends of `bench.transport`: a process that answers, by our network and by bare gRPC, and the ways to it.

python -m bench.transport_ends HOME FILE       the other end; prints how to reach it; leaves when its input ends
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

import farflung.runtime  # noqa: F401 (tells gRPC, before it is loaded, to leave standard error alone)  # isort: skip
import grpc
import grpc.aio

from farflung.runtime.channel import SERVER_OPTIONS, DialledStream, channel_credentials, server_credentials
from farflung.runtime.giver import Giver
from farflung.runtime.node import RealNode, open_node
from farflung.runtime.taker import take
from farflung.wire.certificate import TicketRole
from farflung.wire.identity import Identity
from farflung.wire.message import Message
from farflung.wire.ticket import Ticket
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact
from farflung.world.mailbox import Mailbox, call

ACTOR = "transport"
FILES = "files"
FILE = "weights"
PIECE_BYTES = 1 << 20
CHUNK_BYTES = 8 << 20
NUM_UNDER_WAY_MAX = 4
MEGABYTE = 1_000_000
DEADLINE_SECONDS = 300.0


class TransportProbe(Message):
    """Sent back if `is_echoed`, else acknowledged."""

    data: memoryview
    is_echoed: bool


class TransportReceipt(Message):
    """All of a probe has come."""

    num_bytes: int


class Echo:
    """The server's actor."""

    def __init__(self, node: RealNode) -> None:
        self._node = node
        node.network.listen(ACTOR, self)

    def deliver(self, source: Address, message: object) -> None:
        assert isinstance(message, TransportProbe)
        answer = message if message.is_echoed else TransportReceipt(num_bytes=len(message.data))
        self._node.network.send(ACTOR, source, answer)

    def lost(self, peer: PeerId, reason: str) -> None:
        """The client is done."""


class BareHandler(grpc.GenericRpcHandler):
    """Bare gRPC's server: echoes every frame, or takes 256 MB when the first says so."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._serve)

    async def _serve(self, _: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        left = 0
        while isinstance(frame := await context.read(), bytes):
            if left:
                left -= len(frame)
                if left == 0:
                    await context.write(b"done")
            elif frame.startswith(b"take "):
                left = int(frame[5:])
            else:
                await context.write(frame)


async def serve(home: Path, path: Path) -> None:
    """The process at the other end; leaves when its input ends."""
    node = await open_node(new_swarm="bench", home=home)
    Echo(node)
    giver = Giver(node.world, FILES, {FILE: path})
    bare_identity = Identity.generate()
    server = grpc.aio.server(handlers=[BareHandler()], options=SERVER_OPTIONS)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(node.ticket.issue(bare_identity, time.time())))
    await server.start()
    now = time.time()
    ticket = node.ticket.invite(TicketRole.CLIENT, now + 3600, now)
    print(json.dumps({"ticket": ticket.text(), "bare_peer": bare_identity.peer, "bare_port": port}), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    giver.close()
    await server.stop(0)
    await node.close()


@dataclass
class Ends:
    """Both ways to the other process, and what was measured on them."""

    node: RealNode
    mailbox: Mailbox
    bare: DialledStream
    target: Address

    async def round_trip_ours(self, payload: bytes) -> float:
        """Seconds of one."""
        began = time.perf_counter()
        probe = TransportProbe(data=memoryview(payload), is_echoed=True)
        answer = await call(self.mailbox, self.target, probe, self.node.world.clock.now() + DEADLINE_SECONDS)
        seconds = time.perf_counter() - began
        assert isinstance(answer, TransportProbe)
        assert answer.data == payload
        return seconds

    async def round_trip_bare(self, payload: bytes) -> float:
        """Seconds of one."""
        began = time.perf_counter()
        await self.bare.write(payload)
        answer = await self.bare.read()
        seconds = time.perf_counter() - began
        assert answer == payload
        return seconds

    async def transfer_ours(self, payload: bytes) -> float:
        """Seconds until all of it is known to have arrived."""
        began = time.perf_counter()
        view, deadline = memoryview(payload), self.node.world.clock.now() + DEADLINE_SECONDS
        sent = arrived = 0
        while arrived < len(payload):
            while sent < len(payload) and sent - arrived < NUM_UNDER_WAY_MAX * CHUNK_BYTES:
                chunk = view[sent : sent + CHUNK_BYTES]
                self.mailbox.send(self.target, TransportProbe(data=chunk, is_echoed=False))
                sent += len(chunk)
            received = await self.mailbox.receive(deadline)
            assert received is not None
            assert isinstance(received[1], TransportReceipt)
            arrived += received[1].num_bytes
        return time.perf_counter() - began

    async def transfer_bare(self, payload: bytes) -> float:
        """Seconds until all of it is known to have arrived."""
        began = time.perf_counter()
        await self.bare.write(b"take %d" % len(payload))
        for offset in range(0, len(payload), PIECE_BYTES):
            await self.bare.write(payload[offset : offset + PIECE_BYTES])
        assert await self.bare.read() == b"done"
        return time.perf_counter() - began

    async def transfer_file(self, target: Path) -> float:
        """Seconds until the other end's file is here, verified and on disk."""
        began = time.perf_counter()
        await take(self.node.world, Address(self.target.peer, FILES), FILE, target)
        return time.perf_counter() - began


@contextlib.asynccontextmanager
async def server_process(home: Path, path: Path) -> AsyncIterator[tuple[Ticket, PeerId, int]]:
    """(ticket, peer and port of the bare server) of a running other end that gives the file at `path`."""
    program = [sys.executable, "-m", "bench.transport_ends", str(home), str(path)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    try:
        ready = json.loads(await process.stdout.readline())
        yield Ticket.parse(ready["ticket"], time.time()), PeerId(ready["bare_peer"]), ready["bare_port"]
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def connected(
    node: RealNode, ticket: Ticket, bare_peer: PeerId, our_port: int, bare_port: int
) -> AsyncIterator[Ends]:
    """Both ways, warm, through the given local ports."""
    peer = ticket.meetings[0].peer
    node.network.introduce(peer, Contact(endpoints=(f"127.0.0.1:{our_port}",)))
    bare = DialledStream(
        f"127.0.0.1:{bare_port}", bare_peer, channel_credentials(ticket.issue(node.identity, time.time()))
    )
    with Mailbox(node.world, "probe") as mailbox:
        ends = Ends(node, mailbox, bare, Address(peer, ACTOR))
        for way in (ends.round_trip_ours, ends.round_trip_bare):
            for _ in range(3):
                await way(bytes(1000))
        # Opens the bulk lanes, and lets both sides' congestion windows grow.
        await ends.transfer_ours(bytes(8 * MEGABYTE))
        await ends.transfer_bare(bytes(8 * MEGABYTE))
        try:
            yield ends
        finally:
            bare.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))
