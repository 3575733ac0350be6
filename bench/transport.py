"""What our network costs over bare gRPC: round trips and large transfers, both in the same run between two processes.

Bare gRPC is what our lanes are made of: one `grpc.aio` bidirectional stream of bytes, the same certificates, TLS 1.3,
the same machine, used as directly as it can be: the payload is written as it is and echoed; a large transfer is written
in pieces of 1 MiB and not put together. Ours is a message to an actor and its answer: msgpack, actor names, counting,
and for a large transfer messages of 8 MiB, four of them under way, which lanes carry in parts and the other end puts
together and decodes. The two alternate; medians are compared.
"""

import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import farflung.runtime  # noqa: F401 (tells gRPC, before it is loaded, to leave standard error alone)  # isort: skip
import grpc
import grpc.aio

from bench.report import Report, bench_arguments
from bench.shaping import shaped_link_process
from farflung.runtime.channel import OPTIONS, DialledStream, channel_credentials, server_credentials
from farflung.runtime.node import RealNode, open_node
from farflung.wire.certificate import TicketRole
from farflung.wire.identity import Identity
from farflung.wire.message import Message
from farflung.wire.ticket import Ticket
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact
from farflung.world.mailbox import Mailbox, call

ACTOR = "transport"
PIECE_BYTES = 1 << 20
CHUNK_BYTES = 8 << 20
NUM_UNDER_WAY_MAX = 4
MEGABYTE = 1_000_000
ADDED_SECONDS_MAX = 0.0003
ADDED_SHARE_MAX = 0.15
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


async def serve(home: Path) -> None:
    """The process at the other end; leaves when its input ends."""
    node = await open_node(new_swarm="bench", home=home)
    Echo(node)
    bare_identity = Identity.generate()
    server = grpc.aio.server(handlers=[BareHandler()], options=OPTIONS)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(node.ticket.issue(bare_identity, time.time())))
    await server.start()
    now = time.time()
    ticket = node.ticket.invite(TicketRole.CLIENT, now + 3600, now)
    print(json.dumps({"ticket": ticket.text(), "bare_peer": bare_identity.peer, "bare_port": port}), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
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


@contextlib.asynccontextmanager
async def server_process(home: Path) -> AsyncIterator[tuple[Ticket, PeerId, int]]:
    """(ticket, peer and port of the bare server) of a running other end."""
    program = [sys.executable, "-m", "bench.transport", "--serve", str(home)]
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


async def alternate(
    ways: list[Callable[[bytes], Awaitable[float]]], payload: bytes, num_rounds: int, num_each: int
) -> list[float]:
    """Median seconds of each way; the order is turned round every other round."""
    measured: list[list[float]] = [[] for _ in ways]
    for number in range(num_rounds):
        order = list(enumerate(ways))
        for index, way in order if number % 2 == 0 else reversed(order):
            measured[index] += [await way(payload) for _ in range(num_each)]
    return [statistics.median(seconds) for seconds in measured]


async def measure_loopback(report: Report, ends: Ends, is_quick: bool) -> None:
    """The claims of the project: at most 0.3 ms and 15 % more."""
    rows: list[tuple[object, ...]] = []
    num_rounds = 8 if is_quick else 30
    for kilobytes in (16, 64):
        payload = bytes(kilobytes * 1024)
        ours, bare = await alternate([ends.round_trip_ours, ends.round_trip_bare], payload, num_rounds, 40)
        rows.append((f"{kilobytes} KB round trip, ms", bare * 1e3, ours * 1e3, ours / bare))
        added = f"{(ours - bare) * 1e3:+.3f} ms ({bare * 1e3:.3f} -> {ours * 1e3:.3f})"
        text = f"loopback: a {kilobytes} KB round trip over bare gRPC's"
        report.claim(text, "at most +0.3 ms", added, ours - bare <= ADDED_SECONDS_MAX)
    payload = bytes((64 if is_quick else 256) * MEGABYTE)
    ours, bare = await alternate([ends.transfer_ours, ends.transfer_bare], payload, 3 if is_quick else 7, 1)
    num_megabytes = len(payload) / MEGABYTE
    rows.append((f"{num_megabytes:.0f} MB, MB/s", num_megabytes / bare, num_megabytes / ours, bare / ours))
    share = (
        f"{(ours / bare - 1) * 100:+.1f} % time ({num_megabytes / ours:.0f} MB/s against {num_megabytes / bare:.0f})"
    )
    text = f"loopback: a transfer of {num_megabytes:.0f} MB over bare gRPC's"
    report.claim(text, "at most +15 %", share, ours <= bare * (1 + ADDED_SHARE_MAX))
    report.table("loopback", ("what", "bare gRPC", "ours", "ratio"), rows)


async def measure_far(report: Report, ends: Ends, title: str, round_trip_seconds: float, is_quick: bool) -> None:
    """The same over a delayed, lossy link."""
    rows: list[tuple[object, ...]] = []
    for kilobytes in (16, 64):
        payload = bytes(kilobytes * 1024)
        ours, bare = await alternate([ends.round_trip_ours, ends.round_trip_bare], payload, 4 if is_quick else 10, 5)
        rows.append((f"{kilobytes} KB round trip, ms", bare * 1e3, ours * 1e3, ours / bare))
        added = f"{(ours - bare) * 1e3:+.2f} ms ({bare * 1e3:.1f} -> {ours * 1e3:.1f})"
        # The link's own jitter is some hundredths of its round trip.
        bound = ADDED_SECONDS_MAX + 0.02 * round_trip_seconds
        text = f"{title}: a {kilobytes} KB round trip over bare gRPC's"
        report.claim(text, f"at most +{bound * 1e3:.1f} ms", added, ours - bare <= bound)
    payload = bytes((8 if is_quick else 32) * MEGABYTE)
    ours, bare = await alternate([ends.transfer_ours, ends.transfer_bare], payload, 2 if is_quick else 3, 1)
    num_megabytes = len(payload) / MEGABYTE
    rows.append((f"{num_megabytes:.0f} MB, MB/s", num_megabytes / bare, num_megabytes / ours, bare / ours))
    share = (
        f"{(ours / bare - 1) * 100:+.1f} % time ({num_megabytes / ours:.1f} MB/s against {num_megabytes / bare:.1f})"
    )
    text = f"{title}: a transfer of {num_megabytes:.0f} MB over bare gRPC's"
    report.claim(text, "at most +15 %", share, ours <= bare * (1 + ADDED_SHARE_MAX))
    report.table(title, ("what", "bare gRPC", "ours", "ratio"), rows)


LINKS = {
    "60 ms, 200 Mbit/s": {"one_way_seconds": 0.030, "bytes_per_second": 25e6},
    "60 ms, 200 Mbit/s, 0.3 % loss": {"one_way_seconds": 0.030, "bytes_per_second": 25e6, "loss": 0.003},
}


async def measure(report: Report, is_quick: bool, folder: Path) -> None:
    """Everything, against one server process."""
    async with server_process(folder / "server") as (ticket, bare_peer, bare_port):
        node = await open_node(ticket=ticket, home=folder / "client", is_dial_only=True)
        try:
            our_port = int(ticket.meetings[0].endpoints[0].rsplit(":", 1)[1])
            async with connected(node, ticket, bare_peer, our_port, bare_port) as ends:
                await measure_loopback(report, ends, is_quick)
            node.network.keep(ticket.meetings[0].peer, False)
            for title, shape in LINKS.items():
                async with (
                    shaped_link_process(our_port, **shape) as (our_far_port, _),
                    shaped_link_process(bare_port, **shape) as (bare_far_port, _),
                ):
                    await node.network.drop(ticket.meetings[0].peer)
                    async with connected(node, ticket, bare_peer, our_far_port, bare_far_port) as ends:
                        await measure_far(report, ends, title, 2 * shape["one_way_seconds"], is_quick)
        finally:
            await node.close()


def main() -> int:
    parser = bench_arguments("our network against bare gRPC")
    parser.add_argument("--serve", type=Path, metavar="HOME", help="(internal) be the other end")
    arguments = parser.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve(arguments.serve))
        return 0
    report = Report("transport", {"quick": arguments.quick, "links": LINKS, "grpc": grpc.__version__})
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(report, arguments.quick, Path(folder)))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
