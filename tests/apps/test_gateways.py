"""What passes between two regions' processes is as slow as their link, and what no link joins is refused."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from farflung.apps.runs.gateways import Gateways, hosts_of, open_gateways
from farflung.apps.runs.sites import LinkSettings

REGIONS = ("east", "west", "north")
ONE_WAY_SECONDS = 0.05
BYTES_PER_SECOND = 1e6
LINKS = [LinkSettings(between=("east", "west"), bandwidth_mbit=8.0, latency_ms=1000 * ONE_WAY_SECONDS)]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def dialled(dialler: str, target: str) -> AsyncIterator[tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]]:
    """The answer of a region's gateway to a CONNECT to an echo in another, and the connection."""
    gateways = Gateways(REGIONS, LINKS)
    there = await asyncio.start_server(echo, hosts_of(REGIONS)[target], 0)
    here = await asyncio.start_server(partial(gateways.serve, dialler), "127.0.0.1", 0)
    async with there, here:
        host, port = there.sockets[0].getsockname()[:2]
        reader, writer = await asyncio.open_connection("127.0.0.1", here.sockets[0].getsockname()[1])
        writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        yield await reader.readuntil(b"\r\n\r\n"), reader, writer
        writer.close()
        await asyncio.sleep(4 * ONE_WAY_SECONDS)  # until the other ends have heard of it


@pytest.mark.parametrize(("one", "other"), [("east", "west"), ("west", "east")])
def test_both_ends_of_a_link_are_as_slow_as_it_says(one: str, other: str) -> None:
    async def passed() -> tuple[float, float]:
        async with dialled(one, other) as (answer, reader, writer):
            assert answer.startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            small = time.monotonic() - began
            began = time.monotonic()
            writer.write(bytes(300_000))
            await reader.readexactly(300_000)
            return small, time.monotonic() - began

    small, large = asyncio.run(passed())
    assert 2 * ONE_WAY_SECONDS <= small < 20.0
    assert 300_000 / BYTES_PER_SECOND + 2 * ONE_WAY_SECONDS <= large < 40.0


def test_regions_without_a_link_do_not_reach_each_other() -> None:
    async def answered() -> bytes:
        async with dialled("east", "north") as (answer, _, _):
            return answer

    assert asyncio.run(answered()).startswith(b"HTTP/1.1 403")


def test_a_region_alone_has_a_gateway_that_leads_nowhere(tmp_path: Path) -> None:
    with open_gateways(["here"], [], tmp_path) as ways:
        assert ways.one_way_seconds == 0 and list(ways.ports) == ["here"]
