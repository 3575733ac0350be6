"""A node dials through the proxy that its environment names when it dials, not when the program was loaded."""

import asyncio
import time

import pytest

from farflung.runtime.channel import DialledStream, channel_credentials
from farflung.wire.identity import Identity
from tests.runtime.conftest import Swarm

pytestmark = pytest.mark.loopback


async def test_a_proxy_named_after_the_program_was_loaded_is_dialled_through(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: asyncio.Queue[bytes] = asyncio.Queue()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked.put(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    monkeypatch.setenv("grpc_proxy", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    monkeypatch.setenv("no_grpc_proxy", "127.0.0.1")
    await swarm.add()
    stranger = Identity.generate()
    credentials = channel_credentials(swarm.ticket().issue(stranger, time.time()))
    stream = DialledStream("127.0.7.1:4000", stranger.peer, credentials)
    connecting = asyncio.ensure_future(stream.connected())
    try:
        async with asyncio.timeout(60):
            assert (await asked.get()).startswith(b"CONNECT 127.0.7.1:4000")
    finally:
        connecting.cancel()
        await asyncio.wait([connecting], timeout=5)
        stream.close()
        proxy.close()
