"""Links of a run file between processes of one machine: each region has a loopback address and a gateway to others.

Processes of a region listen on its address, and dial other regions through its gateway, an HTTP proxy (CONNECT). What
passes between two regions shares one shaped link. The gateways are one process of their own, this module as a program
with the run's regions and links as JSON; it writes their ports.
"""

import asyncio
import contextlib
import json
import selectors
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import msgspec

from farflung.apps.parents import tie_to_parent
from farflung.apps.processes import Supervisor
from farflung.apps.runs.sites import LinkSettings
from farflung.apps.wiring import ONE_WAY_VARIABLE
from farflung.runtime.shaped_link import End, Shape, ShapedLink

REGIONS_MAX = 250
START_SECONDS = 60.0
HEAD_BYTES_MAX = 16 << 10


def hosts_of(regions: Sequence[str]) -> dict[str, str]:
    """The loopback address of each region; on Linux all of them are there."""
    assert len(regions) < REGIONS_MAX
    return {region: f"127.0.{1 + place}.1" for place, region in enumerate(regions)}


@dataclass(frozen=True, slots=True)
class Ways:
    """Where the processes of each region listen, and through what they dial."""

    hosts: Mapping[str, str]
    ports: Mapping[str, int]
    """Of the gateways."""
    one_way_seconds: float
    """Of the longest link."""

    def variables(self, region: str) -> dict[str, str]:
        """Environment of a process of that region."""
        own = self.hosts[region]
        return {
            "grpc_proxy": f"http://127.0.0.1:{self.ports[region]}",
            "no_grpc_proxy": f"{own},127.0.0.1",
            ONE_WAY_VARIABLE: str(self.one_way_seconds),
        }


@contextlib.contextmanager
def open_gateways(regions: Sequence[str], links: Sequence[LinkSettings], folder: Path) -> Iterator[Ways]:
    """Start the gateways, and end them; their output goes to a log in `folder`.

    Raises:
        ChildFailed: they do not start.
    """
    tables = {"regions": list(regions), "links": [asdict(link) for link in links]}
    command = [sys.executable, "-m", "farflung.apps.runs.gateways", json.dumps(tables)]
    with Supervisor(folder) as supervisor:
        child = supervisor.start("gateways", command, {})
        supervisor.wait_until(lambda: bool(child.lines()), seconds_max=START_SECONDS, what="the gateways listen")
        one_way_seconds = max((link.latency_ms for link in links), default=0.0) / 1000
        yield Ways(hosts_of(regions), json.loads(child.lines()[0]), one_way_seconds)


class Gateways:
    """One gateway per region, over the links between them."""

    def __init__(self, regions: Sequence[str], links: Sequence[LinkSettings]) -> None:
        self._region_at = {host: region for region, host in hosts_of(regions).items()}
        self._links: dict[tuple[str, str], tuple[ShapedLink, bool]] = {}
        for number, link in enumerate(links):
            seconds, rate = link.latency_ms / 1000, link.bytes_per_second
            shape = Shape(one_way_seconds=seconds, bytes_per_second=rate, loss=link.loss, seed=number)
            shaped, (one, other) = ShapedLink(shape), link.between
            self._links[one, other], self._links[other, one] = (shaped, False), (shaped, True)

    async def serve(self, region: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A process of that region dials another one."""
        target = await _asked(reader)
        found = self._links.get((region, self._region_at.get(target[0], ""))) if target is not None else None
        if target is None or found is None:
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            writer.close()
            return
        link, is_turned = found
        await asyncio.sleep(2 * link.shape.one_way_seconds)  # a connection is made in a round trip
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        here: End = (reader, writer)
        await link.carry(here, target, is_turned=is_turned)


async def _asked(reader: asyncio.StreamReader) -> tuple[str, int] | None:
    """Host and port of a CONNECT; None for anything else."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        return None
    words = head.decode("latin-1").split()
    if len(words) < 2 or words[0] != "CONNECT":
        return None
    host, _, port = words[1].rpartition(":")
    return (host, int(port)) if port.isdecimal() else None


async def _main(tables: str) -> None:
    given = json.loads(tables)
    links = msgspec.convert(given["links"], type=tuple[LinkSettings, ...])
    gateways = Gateways(given["regions"], links)
    servers = {
        region: await asyncio.start_server(partial(gateways.serve, region), "127.0.0.1", 0, limit=HEAD_BYTES_MAX)
        for region in given["regions"]
    }
    print(json.dumps({region: server.sockets[0].getsockname()[1] for region, server in servers.items()}), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers.values()))


if __name__ == "__main__":
    tie_to_parent()
    # select() takes microseconds where epoll takes milliseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_main(sys.argv[1]))
