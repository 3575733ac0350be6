"""Taking calls: the gRPC server, who is calling, and handing streams to the links that they belong to."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import grpc.aio
from cryptography import x509

from farflung.runtime import handshake
from farflung.runtime.channel import METHOD, SERVER_OPTIONS, AcceptedStream, server_credentials
from farflung.runtime.handshake import LINK_NAME_BYTES, Self
from farflung.runtime.lane import Lane, StreamBroken
from farflung.runtime.limits import NetworkLimits
from farflung.runtime.link import Link, LinkOwner
from farflung.runtime.peering import Peering
from farflung.wire.certificate import ChainRefused
from farflung.wire.chain import Member
from farflung.wire.control import Hello
from farflung.wire.ticket import Credentials
from farflung.world.address import PeerId

NUM_REFUSED_SPEAKING_MAX = 16
"""Callers that may say Hello although their certificates are refused, at the same time."""


class AcceptorOwner(LinkOwner, Protocol):
    """The network, as its acceptor sees it."""

    def peering(self, peer: PeerId) -> Peering:
        """The one of this peer, made if need be."""
        ...

    def joined(self, member: Member) -> None:
        """A peer showed a valid certificate."""
        ...

    def note(self, sentence: str) -> None:
        """For the log."""
        ...


class Acceptor:
    """Listens until `close`."""

    def __init__(
        self,
        me: Self,
        credentials: Credentials,
        owner: AcceptorOwner,
        limits: NetworkLimits,
        check_chain: Callable[[list[x509.Certificate]], Member],
    ) -> None:
        """`check_chain`: who the owner of some certificates is, if this swarm accepts them."""
        self._me = me
        self._credentials = credentials
        self._owner = owner
        self._limits = limits
        self._check_chain = check_chain
        self._server: grpc.aio.Server | None = None
        self._num_refused_speaking = 0

    async def listen(self, host: str, port: int) -> int:
        """Take calls from now on; the port, which is a free one if 0 is asked for.

        Raises:
            ValueError: the port is in use, or is not this machine's.
        """
        server = grpc.aio.server(handlers=[_Handler(self._serve)], options=SERVER_OPTIONS)
        try:
            bound = server.add_secure_port(f"{host}:{port}", server_credentials(self._credentials))
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise ValueError(
                f"cannot listen on {host}:{port}: the port is in use, or the address is not this machine's; "
                "choose another one, or port 0 for any that is free"
            )
        await server.start()
        self._server = server
        return bound

    async def close(self) -> None:
        """End all streams."""
        if self._server is not None:
            await self._server.stop(0)

    async def _serve(self, _: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        stream = AcceptedStream(context)
        try:
            member = self._member(context.auth_context())
        except ChainRefused as error:
            self._owner.note(f"refused a call from {context.peer()}: {error}")
            await self._let_it_speak(stream)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            return
        self._owner.joined(member)
        peering = self._owner.peering(member.peer)
        peering.num_streams += 1
        try:
            await self._open(stream, member, peering)
        except (StreamBroken, TimeoutError) as error:
            why = str(error) or "it said nothing in time"
            self._owner.note(f"a call from {member.peer} came to nothing: {why}")
        except asyncio.CancelledError:
            # The peer is gone or the server stops: either way this stream is over, which is all that is meant.
            pass
        finally:
            peering.num_streams -= 1

    async def _let_it_speak(self, stream: AcceptedStream) -> None:
        """Returns when a caller that will be refused has said Hello, or soon: gRPC tells one whose write fails nothing
        of the reason. Where many call, they are not waited for."""
        if self._num_refused_speaking < NUM_REFUSED_SPEAKING_MAX:
            self._num_refused_speaking += 1
            try:
                async with asyncio.timeout(self._limits.dial_seconds_max):
                    await stream.read()
            except TimeoutError:
                pass
            finally:
                self._num_refused_speaking -= 1

    async def _open(self, stream: AcceptedStream, member: Member, peering: Peering) -> None:
        now = asyncio.get_running_loop().time()
        if now < peering.refused_until or peering.num_streams > self._limits.num_streams_per_peer_max:
            await handshake.decline(stream, "this node takes no calls from you for now")
            return
        hello = await handshake.read_hello(stream, self._limits)
        if hello.link:
            await self._add_lane(stream, member, peering, hello)
        else:
            await self._add_link(stream, member, peering, hello)

    async def _add_lane(self, stream: AcceptedStream, member: Member, peering: Peering, hello: Hello) -> None:
        link = peering.link
        if link is None or not secrets.compare_digest(link.name, hello.link):
            await handshake.decline(stream, "the link of this lane is not open")
            return
        await handshake.welcome(stream, self._me, member, hello, hello.link)
        await handshake.read_ready(stream, self._limits)
        lane = link.add_bulk_lane(stream) if link.is_open else None
        if lane is not None:
            await _until_over(lane)

    async def _add_link(self, stream: AcceptedStream, member: Member, peering: Peering, hello: Hello) -> None:
        async with peering.answering(self._me.identity.peer) as may_answer:
            if not may_answer:
                await handshake.decline(stream, "our own call came first", is_linked=True)
                return
            name = secrets.token_bytes(LINK_NAME_BYTES)
            await handshake.welcome(stream, self._me, member, hello, name)
            await handshake.read_ready(stream, self._limits)
            link = Link(peering.peer, name, stream, self._owner, self._limits, way="called us")
            peering.adopt(link)
        await _until_over(link.urgent)

    def _member(self, context: Any) -> Member:
        """Who is calling, by the certificates that TLS has seen."""
        if context.get("ssl_tls_version", [b"TLSv1.3"]) != [b"TLSv1.3"]:
            raise ChainRefused("the connection is not TLS 1.3; update the caller's gRPC")
        pem = context["x509_pem_cert"][0] + context["x509_pem_cert_chain"][0]
        leaf, *rest = x509.load_pem_x509_certificates(pem)
        chain = [leaf, *(link for link in rest if link not in (leaf, self._credentials.authority))]
        return self._check_chain(chain)


async def _until_over(lane: Lane) -> None:
    """gRPC ends a stream by cancelling its handler, which may be all that tells of it: a read then stays unanswered."""
    try:
        await asyncio.wait([lane.closed])  # to await it alone would cancel it together with the handler
    finally:
        lane.end("the peer ended the stream")


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, serve: Callable[..., Any]) -> None:
        self._method = grpc.stream_stream_rpc_method_handler(serve)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._method if handler_call_details.method == METHOD else None
