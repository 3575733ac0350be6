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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Compared:
    """Our way against bare gRPC's. Differences and ratios are taken within a round, where both met the same load."""

    ours: float
    bare: float
    """Median seconds."""
    added_seconds: float
    ratio: float
    """Medians over the rounds."""


Way = Callable[[bytes], Awaitable[float]]


async def compare(ours: Way, bare: Way, payload: bytes, num_rounds: int, num_each: int = 1) -> Compared:
    """Alternate; the order is turned round every other round."""
    rounds: list[tuple[float, float]] = []
    for number in range(num_rounds):
        medians: dict[Way, float] = {}
        for way in (ours, bare) if number % 2 == 0 else (bare, ours):
            medians[way] = statistics.median([await way(payload) for _ in range(num_each)])
        rounds.append((medians[ours], medians[bare]))
    return Compared(
        statistics.median(mine for mine, _ in rounds),
        statistics.median(other for _, other in rounds),
        statistics.median(mine - other for mine, other in rounds),
        statistics.median(mine / other for mine, other in rounds),
    )


@dataclass(frozen=True)
class Effort:
    """How much is measured over one link."""

    num_rounds: int
    num_each: int
    num_transfers: int
    large_bytes: int


async def measure_link(report: Report, ends: Ends, title: str, jitter_seconds: float, effort: Effort) -> None:
    """The claims over one link; `jitter_seconds`: what the link itself may add to a round trip."""
    rows: list[tuple[object, ...]] = []
    for kilobytes in (16, 64):
        payload = bytes(kilobytes * 1024)
        trips = ends.round_trip_ours, ends.round_trip_bare
        found = await compare(*trips, payload, effort.num_rounds, effort.num_each)
        rows.append((f"{kilobytes} KB round trip, ms", found.bare * 1e3, found.ours * 1e3, found.ratio))
        added = f"{found.added_seconds * 1e3:+.3f} ms ({found.bare * 1e3:.3f} -> {found.ours * 1e3:.3f})"
        bound = ADDED_SECONDS_MAX + jitter_seconds
        text = f"{title}: a {kilobytes} KB round trip over bare gRPC's"
        report.claim(text, f"at most +{bound * 1e3:.1f} ms", added, found.added_seconds <= bound)
    payload = bytes(effort.large_bytes)
    found = await compare(ends.transfer_ours, ends.transfer_bare, payload, effort.num_transfers)
    size = len(payload) / MEGABYTE
    rows.append((f"{size:.0f} MB, MB/s", size / found.bare, size / found.ours, 1 / found.ratio))
    share = f"{(found.ratio - 1) * 100:+.1f} % time ({size / found.ours:.0f} MB/s against {size / found.bare:.0f})"
    text = f"{title}: a transfer of {size:.0f} MB over bare gRPC's"
    report.claim(text, "at most +15 %", share, found.ratio <= 1 + ADDED_SHARE_MAX)
    report.table(title, ("what", "bare gRPC", "ours", "ratio"), rows)


async def measure_file(report: Report, ends: Ends, folder: Path, num_bytes: int) -> None:
    """What hashing and the disk add; bare gRPC has no counterpart."""
    seconds = statistics.median([await ends.transfer_file(folder / f"taken-{number}") for number in range(3)])
    size = num_bytes / MEGABYTE
    report.table("loopback", ("what", "ours"), [(f"{size:.0f} MB file, hashed and on disk, MB/s", size / seconds)])


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
                effort = Effort(8, 40, 5, large_bytes(True)) if is_quick else Effort(30, 40, 15, large_bytes(False))
                await measure_link(report, ends, "loopback", 0.0, effort)
                await measure_file(report, ends, folder, large_bytes(is_quick))
            node.network.keep(ticket.meetings[0].peer, False)
            for title, shape in LINKS.items():
                async with (
                    shaped_link_process(our_port, **shape) as (our_far_port, _),
                    shaped_link_process(bare_port, **shape) as (bare_far_port, _),
                ):
                    await node.network.drop(ticket.meetings[0].peer)
                    async with connected(node, ticket, bare_peer, our_far_port, bare_far_port) as ends:
                        effort = Effort(4, 5, 2, 8 * MEGABYTE) if is_quick else Effort(10, 5, 5, 32 * MEGABYTE)
                        # The link's own jitter is some hundredths of its round trip.
                        await measure_link(report, ends, title, 0.04 * shape["one_way_seconds"], effort)
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
