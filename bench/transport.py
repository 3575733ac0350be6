"""What our network costs over bare gRPC: round trips and large transfers, both in the same run between two processes.

Bare gRPC is what our lanes are made of: one `grpc.aio` bidirectional stream of bytes, the same certificates, TLS 1.3,
the same machine, used as directly as it can be: the payload is written as it is and echoed; a large transfer is written
in pieces of 1 MiB and not put together. Ours is a message to an actor and its answer: msgpack, actor names, counting,
and for a large transfer messages of 8 MiB, four of them under way, which lanes carry in parts and the other end puts
together and decodes. The two alternate; medians are compared.
"""

import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

from bench.report import Report, bench_arguments
from bench.shaping import shaped_link_process
from bench.transport_ends import MEGABYTE, Ends, connected, server_process
from farflung.runtime.node import open_node

ADDED_SECONDS_MAX = 0.0003
ADDED_SHARE_MAX = 0.15


def large_bytes(is_quick: bool) -> int:
    """Of a large transfer on loopback."""
    return (64 if is_quick else 256) * MEGABYTE


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


async def measure_loopback(report: Report, ends: Ends, is_quick: bool, folder: Path) -> None:
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
    payload = bytes(large_bytes(is_quick))
    ours, bare = await alternate([ends.transfer_ours, ends.transfer_bare], payload, 3 if is_quick else 7, 1)
    num_megabytes = len(payload) / MEGABYTE
    rows.append((f"{num_megabytes:.0f} MB, MB/s", num_megabytes / bare, num_megabytes / ours, bare / ours))
    share = (
        f"{(ours / bare - 1) * 100:+.1f} % time ({num_megabytes / ours:.0f} MB/s against {num_megabytes / bare:.0f})"
    )
    text = f"loopback: a transfer of {num_megabytes:.0f} MB over bare gRPC's"
    report.claim(text, "at most +15 %", share, ours <= bare * (1 + ADDED_SHARE_MAX))
    seconds = statistics.median([await ends.transfer_file(folder / f"taken-{number}") for number in range(3)])
    rows.append(
        (
            f"{num_megabytes:.0f} MB file, hashed and on disk, MB/s",
            num_megabytes / bare,
            num_megabytes / seconds,
            bare / seconds,
        )
    )
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
    path = folder / "weights"
    path.write_bytes(os.urandom(large_bytes(is_quick)))
    async with server_process(folder / "server", path) as (ticket, bare_peer, bare_port):
        node = await open_node(ticket=ticket, home=folder / "client", is_dial_only=True)
        try:
            our_port = int(ticket.meetings[0].endpoints[0].rsplit(":", 1)[1])
            async with connected(node, ticket, bare_peer, our_port, bare_port) as ends:
                await measure_loopback(report, ends, is_quick, folder)
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
    arguments = parser.parse_args()
    report = Report("transport", {"quick": arguments.quick, "links": LINKS, "grpc": version("grpcio")})
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(report, arguments.quick, Path(folder)))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
