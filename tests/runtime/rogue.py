"""A member with a valid ticket that speaks to a node in its own way."""

import asyncio
import time

from farflung.runtime.channel import OPTIONS, DialledStream, channel_credentials
from farflung.runtime.handshake import Self, greet
from farflung.runtime.lane import StreamBroken
from farflung.wire.chain import check_chain
from farflung.wire.control import Ready, encode_control
from farflung.wire.identity import Identity
from farflung.wire.ticket import Ticket
from farflung.world.address import PeerId


class Rogue:
    """A member with a valid ticket that speaks to a node without our network."""

    def __init__(self, ticket: Ticket, target: PeerId, endpoint: str) -> None:
        self.identity = Identity.generate()
        self.credentials = ticket.issue(self.identity, time.time())
        self.target = target
        self.endpoint = endpoint
        self._ticket = ticket
        self._streams: list[DialledStream] = []

    async def open(self) -> DialledStream:
        """TLS is up, nothing said."""
        # An honest node's gRPC would not even send a frame that is too large.
        options = [option for option in OPTIONS if option[0] != "grpc.max_send_message_length"]
        stream = DialledStream(self.endpoint, self.target, channel_credentials(self.credentials), options)
        self._streams.append(stream)
        await stream.connected()
        return stream

    async def link(self) -> tuple[DialledStream, bytes]:
        """A link as an honest member makes it."""
        stream = await self.open()
        name = await self.greet(stream)
        await stream.write(encode_control(Ready()))
        return stream, name

    async def greet(self, stream: DialledStream) -> bytes:
        """The dialler's part of the handshake, but for Ready; the name of the link."""
        own = check_chain(self.credentials.chain, self.credentials.authority, time.time())
        welcome = await greet(stream, Self(self.identity, self._ticket.swarm_id, own.tls_key_hash), self.target)
        return welcome.link

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


async def ended(stream: DialledStream, seconds: float = 60.0) -> bool:
    """Whether the other side ends the stream in time, whatever it says before."""
    try:
        async with asyncio.timeout(seconds):
            while await stream.read() is not None:
                pass
    except StreamBroken:
        return True
    return True
