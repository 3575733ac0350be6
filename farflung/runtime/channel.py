"""gRPC as this project uses it: one bidirectional stream of bytes per connection, mutual TLS, both sides alike."""

import asyncio
import os
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio

from farflung.runtime.lane import StreamBroken
from farflung.wire.certificate import host_name, to_pem
from farflung.wire.control import FRAME_BYTES_MAX
from farflung.wire.ticket import Credentials
from farflung.world.address import PeerId

T = TypeVar("T")

METHOD = "/farflung.Link/Lane"
KEEPALIVE_SECONDS = 20
"""TCP connections that died unnoticed are found by HTTP/2 pings; frozen processes are found by our own (heartbeat)."""

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
    ("grpc.max_send_message_length", FRAME_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.enable_retries", 0),
]
SERVER_OPTIONS: list[tuple[str, Any]] = [
    *OPTIONS,
    ("grpc.so_reuseport", 0),  # else a port in use would be shared instead of refused
    ("grpc.max_connection_idle_ms", 30_000),  # connections whose stream is over
    ("grpc.server_handshake_timeout_ms", 10_000),  # connections of strangers that say nothing
]


class DialledStream:
    """The stream of a channel that this node opened; a channel carries one stream, so that it is one TCP connection."""

    def __init__(
        self,
        endpoint: str,
        peer: PeerId,
        credentials: grpc.ChannelCredentials,
        options: Sequence[tuple[str, Any]] = OPTIONS,
    ) -> None:
        own = [
            ("grpc.ssl_target_name_override", host_name(peer)),
            ("grpc.use_local_subchannel_pool", 1),
            # Asked now and not when this module was loaded: a forked process is given its environment later.
            ("grpc.enable_http_proxy", int("grpc_proxy" in os.environ)),  # not http_proxy: that is for the web
        ]
        self._endpoint = endpoint
        self._channel = grpc.aio.secure_channel(endpoint, credentials, options=[*options, *own])
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] | None = self._channel.stream_stream(METHOD)()
        self._closing: asyncio.Task[None] | None = None

    async def connected(self) -> None:
        """Returns when TCP and TLS are up. Raises StreamBroken with the reason in words."""
        await self._explained(self._open_call().wait_for_connection())

    async def read(self) -> bytes | None:
        frame = await self._explained(self._open_call().read())
        return frame if isinstance(frame, bytes) else None

    async def write(self, frame: bytes) -> None:
        await self._explained(self._open_call().write(frame))

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()
            # gRPC holds the connection as long as anybody holds the call.
            self._call = None
            self._closing = asyncio.create_task(self._channel.close())

    def _open_call(self) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
        if self._call is None:
            raise StreamBroken("the stream was closed here")
        return self._call

    async def _explained(self, work: Awaitable[T]) -> T:
        """The result of an operation; its failure in words.

        No exception that leaves here remembers gRPC's frames: they hold the call, the call holds the connection, and
        an exception may live as long as the task that it ended.
        """
        try:
            return await work
        except grpc.aio.AioRpcError as error:
            reason = explain(self._endpoint, error)
        except asyncio.InvalidStateError:
            reason = "the peer ended the stream"
        except asyncio.CancelledError as error:
            raise error.with_traceback(None) from None
        raise StreamBroken(reason)


class AcceptedStream:
    """The stream of a peer that called this node."""

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        try:
            frame = await self._context.read()
        except (grpc.aio.UsageError, grpc.aio.InternalError):
            return None
        return frame if isinstance(frame, bytes) else None

    async def write(self, frame: bytes) -> None:
        try:
            await self._context.write(frame)
        except (grpc.aio.UsageError, grpc.aio.InternalError):
            raise StreamBroken("the peer ended the stream") from None

    def close(self) -> None:
        """Nothing to do: the stream ends when its handler returns."""


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """For dialling."""
    authority, chain = to_pem([credentials.authority]), to_pem(credentials.chain)
    return grpc.ssl_channel_credentials(authority, credentials.private_key_pem, chain)


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials:
    """For accepting; peers without a certificate of the swarm fail the TLS handshake."""
    pair = credentials.private_key_pem, to_pem(credentials.chain)
    return grpc.ssl_server_credentials([pair], to_pem([credentials.authority]), require_client_auth=True)


def explain(endpoint: str, error: grpc.aio.AioRpcError) -> str:
    """What a gRPC status means, in one sentence."""
    details = error.details() or str(error.code())
    if "Connection refused" in details:
        return f"nobody listens at {endpoint}"
    if "Hostname Verification" in details or "Name match" in details:
        return f"the node at {endpoint} is another one"
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return f"the node at {endpoint} is of another swarm, or its ticket has expired"
    if "Socket closed" in details or "andshake" in details or "Connection reset" in details:
        return f"{endpoint} closed the connection: the ticket may be for another swarm, expired or revoked"
    if "larger than max" in details:
        return "a frame is over the size limit"
    if "DNS" in details or "resolution" in details:
        return f"the name in {endpoint} cannot be resolved"
    return f"{endpoint}: {details[:200]}"
