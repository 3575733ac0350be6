"""Calling a peer: the first of its endpoints that answers, then the opening frames."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import grpc

from farflung.runtime.channel import DialledStream, channel_credentials
from farflung.runtime.handshake import AlreadyLinked, Self, greet
from farflung.runtime.lane import Stream, StreamBroken
from farflung.runtime.limits import NetworkLimits
from farflung.runtime.link import Link, LinkOwner
from farflung.runtime.peering import Peering
from farflung.wire.certificate import ChainRefused
from farflung.wire.chain import Member
from farflung.wire.control import Ready, Welcome, encode_control
from farflung.wire.ticket import Credentials
from farflung.world.address import PeerId


class DialerOwner(LinkOwner, Protocol):
    """The network, as its dialler sees it."""

    def joined(self, member: Member) -> None:
        """A peer showed a valid certificate."""
        ...


class Dialer:
    """Makes links to peers that accept calls."""

    def __init__(
        self,
        me: Self,
        credentials: Credentials,
        owner: DialerOwner,
        limits: NetworkLimits,
        check_chain: Callable[[tuple[bytes, ...]], Member],
    ) -> None:
        """`check_chain`: who the owner of some certificates is, if this swarm accepts them."""
        self._me = me
        self._credentials: grpc.ChannelCredentials = channel_credentials(credentials)
        self._owner = owner
        self._limits = limits
        self._check_chain = check_chain

    async def dial(self, peering: Peering, endpoints: tuple[str, ...]) -> None:
        """Open a link to the peer and let `peering` adopt it; or find that the peer's own call was quicker.

        Raises:
            StreamBroken: neither.
        """
        endpoint, stream = await self._first(peering.peer, endpoints)
        try:
            async with peering.calling() as may_call:
                if may_call:
                    await self._shake_hands(peering, endpoint, stream)
                else:
                    stream.close()
        except AlreadyLinked:
            stream.close()
            if not await peering.linked(self._limits.dial_seconds_max):
                raise StreamBroken("it said that it had called, but no call came") from None
        except BaseException:
            stream.close()
            raise

    async def _shake_hands(self, peering: Peering, endpoint: str, stream: DialledStream) -> None:
        try:
            async with asyncio.timeout(self._limits.dial_seconds_max):
                welcome = await greet(stream, self._me, peering.peer)
                self._owner.joined(self._member(welcome, peering.peer))
                await stream.write(encode_control(Ready()))
        except TimeoutError:
            raise StreamBroken(f"{endpoint} took the call but did not answer in time") from None

        async def dial_lane(name: bytes) -> Stream:
            return await self._dial_lane(peering.peer, endpoint, name)

        way = f"called at {endpoint}"
        peering.adopt(Link(peering.peer, welcome.link, stream, self._owner, self._limits, dial_lane=dial_lane, way=way))

    def _member(self, welcome: Welcome, peer: PeerId) -> Member:
        """Who has answered, by its certificates.

        Raises:
            StreamBroken: they are not of this swarm, are revoked, or another's.
        """
        try:
            member = self._check_chain(welcome.chain)
        except ChainRefused as error:
            raise StreamBroken(f"its certificates are refused: {error}") from None
        if member.peer != peer:
            raise StreamBroken(f"it shows the certificates of {member.peer}")
        return member

    async def _dial_lane(self, peer: PeerId, endpoint: str, name: bytes) -> Stream:
        stream = DialledStream(endpoint, peer, self._credentials)
        try:
            async with asyncio.timeout(self._limits.dial_seconds_max):
                await stream.connected()
                await greet(stream, self._me, peer, name)
                await stream.write(encode_control(Ready()))
        except TimeoutError:
            stream.close()
            raise StreamBroken(f"{endpoint} did not answer in time") from None
        except BaseException:
            stream.close()
            raise
        return stream

    async def _first(self, peer: PeerId, endpoints: tuple[str, ...]) -> tuple[str, DialledStream]:
        """The first endpoint that answers; each next one is tried when those before fail or are slow."""
        waiting = list(endpoints)
        attempts: dict[asyncio.Task[None], tuple[str, DialledStream]] = {}
        reasons: list[str] = []
        try:
            while waiting or attempts:
                if waiting:
                    endpoint = waiting.pop(0)
                    stream = DialledStream(endpoint, peer, self._credentials)
                    attempts[asyncio.create_task(self._connect(endpoint, stream))] = endpoint, stream
                patience = self._limits.dial_stagger_seconds if waiting else None
                done, _ = await asyncio.wait(attempts, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in attempts if task in done]:
                    won = attempts.pop(task)
                    if (error := task.exception()) is None:
                        return won
                    won[1].close()
                    reasons.append(str(error))
        finally:
            for task, (_, stream) in attempts.items():
                task.cancel()
                stream.close()
        raise StreamBroken("; ".join(reasons))

    async def _connect(self, endpoint: str, stream: DialledStream) -> None:
        try:
            async with asyncio.timeout(self._limits.dial_seconds_max):
                await stream.connected()
        except TimeoutError:
            raise StreamBroken(f"{endpoint} does not answer") from None
