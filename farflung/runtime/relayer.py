"""Agreeing on links through a relay, as the side that calls and as the side that is called.

A caller that accepts calls itself asks first to be called back (`CallMe`): a direct link beats a relayed one. Otherwise
the two greet each other through the relay (`wire.sealed`).
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from farflung.runtime.handshake import Self
from farflung.runtime.lane import Stream, StreamBroken
from farflung.runtime.limits import NetworkLimits
from farflung.runtime.link import Link, LinkOwner
from farflung.runtime.peering import Peering
from farflung.runtime.relay_sessions import RelaySessions
from farflung.runtime.relayed import RelayedSession, Through
from farflung.wire.certificate import ChainRefused, to_der
from farflung.wire.chain import Member
from farflung.wire.control import (
    Hello,
    MalformedFrame,
    Ready,
    Relayed,
    common_version,
    decode_control,
    encode_control,
    no_common_version,
)
from farflung.wire.message import WIRE_VERSION_MAX, WIRE_VERSION_MIN
from farflung.wire.sealed import (
    SESSION_BYTES,
    BadSeal,
    CallMe,
    CannotCall,
    Greeting,
    RelayBody,
    SealedDecline,
    SealedFrame,
    SealedHello,
    SealedWelcome,
    decode_body,
)
from farflung.wire.ticket import Credentials
from farflung.world.address import PeerId
from farflung.world.doors import Contact

NUM_ANSWERS_MAX = 64
"""Calls through relays that are being answered at one time; more are passed over."""
NUM_ENDPOINTS_MAX = 8
"""Of a CallMe, that are tried."""


class RelayerOwner(LinkOwner, Protocol):
    """The network, as its relayer sees it."""

    def peering(self, peer: PeerId) -> Peering:
        """The one of this peer, made if need be."""
        ...

    def joined(self, member: Member) -> None:
        """A peer showed a valid certificate."""
        ...

    def note(self, sentence: str) -> None:
        """For the log."""
        ...

    async def dial(self, peering: Peering, contact: Contact) -> None:
        """Call a peer."""
        ...


class Relayer:
    """Every link of this node that goes through a relay."""

    def __init__(
        self,
        me: Self,
        credentials: Credentials,
        owner: RelayerOwner,
        limits: NetworkLimits,
        check_chain: Callable[[tuple[bytes, ...]], Member],
    ) -> None:
        """`check_chain`: who the owner of some certificates is, if this swarm accepts them."""
        self._me = me
        self._chain = tuple(to_der(certificate) for certificate in credentials.chain)
        self._owner = owner
        self._limits = limits
        self._check_chain = check_chain
        self._answers: list[asyncio.Task[None]] = []
        self.sessions = RelaySessions()
        self.endpoints: tuple[str, ...] = ()
        """Where this node accepts calls."""

    async def dial(self, peering: Peering, relay: PeerId) -> None:
        """Open a link to the peer through `relay`, or have the peer call back if it can; `peering` adopts it.

        Raises:
            StreamBroken: neither.
        """
        relay_peering = self._owner.peering(relay)
        relay_peering.call()
        if not await relay_peering.linked(self._limits.dial_seconds_max) or relay_peering.link is None:
            raise StreamBroken(f"the relay {relay} cannot be reached")
        through = Through(relay_peering.link, self._me.identity.peer, peering.peer)
        if self.endpoints:
            asking = self.sessions.ask(through, b"", CallMe(endpoints=self.endpoints), self._limits.dial_seconds_max)
            await peering.linked_unless(asking)
        async with peering.calling() as may_call:
            if may_call:
                await self._greet(peering, through)

    def receive(self, link: Link, frame: Relayed) -> None:
        """A frame for this node came from a relay."""
        through = Through(link, self._me.identity.peer, frame.source)
        try:
            self._take(through, decode_body(frame.data))
        except (BadSeal, StreamBroken) as error:
            self._owner.note(f"a frame from {frame.source} through {link.peer} is refused: {error}")

    def stop(self) -> None:
        """Answer no more calls."""
        for task in list(self._answers):
            task.cancel()

    def _take(self, through: Through, body: RelayBody) -> None:
        match body:
            case SealedFrame():
                self.sessions.take(through, body)
            case SealedHello():
                self._answer(through, self._welcome(through, body))
            case CallMe():
                self._answer(through, self._call_back(through, body))
            case SealedWelcome(session=session):
                self.sessions.answered(through, session, body)
            case SealedDecline():
                self.sessions.declined(through, body)
            case _:
                self.sessions.answered(through, b"", body)

    def _answer(self, through: Through, work: Coroutine[Any, Any, None]) -> None:
        if len(self._answers) >= NUM_ANSWERS_MAX:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(self._noted(through, work))
        self._answers.append(task)
        task.add_done_callback(self._answers.remove)

    async def _noted(self, through: Through, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (StreamBroken, BadSeal, ChainRefused, MalformedFrame, TimeoutError) as error:
            why = str(error) or "it said nothing in time"
            self._owner.note(f"a call from {through.peer} through {through.link.peer} came to nothing: {why}")

    async def _call_back(self, through: Through, body: CallMe) -> None:
        peering = self._owner.peering(through.peer)
        try:
            if peering.link is None:
                await self._owner.dial(peering, Contact(endpoints=body.endpoints[:NUM_ENDPOINTS_MAX]))
        except StreamBroken:
            through.send(CannotCall())

    async def _greet(self, peering: Peering, through: Through) -> None:
        greeting = Greeting(self._me.identity, self._me.swarm_id, secrets.token_bytes(SESSION_BYTES), peering.peer)
        signature = greeting.sign(b"", (WIRE_VERSION_MIN, WIRE_VERSION_MAX))
        hello = SealedHello(
            session=greeting.session,
            version_min=WIRE_VERSION_MIN,
            version_max=WIRE_VERSION_MAX,
            chain=self._chain,
            ephemeral_key=greeting.ephemeral_key,
            signature=signature,
        )
        answer = await self.sessions.ask(through, greeting.session, hello, self._limits.dial_seconds_max)
        if isinstance(answer, SealedDecline):
            if not answer.is_linked:
                raise StreamBroken(f"it declined: {answer.reason[:300]}")
            if not await peering.linked(self._limits.dial_seconds_max):
                raise StreamBroken("it said that it had called, but no call came")
            return
        assert isinstance(answer, SealedWelcome)
        try:
            member = self._member(answer.chain, peering.peer)
            offered = greeting.ephemeral_key
            greeting.check(member.public_key, answer.ephemeral_key, offered, (answer.version,), answer.signature)
            sealed = greeting.agree(answer.ephemeral_key, (signature, answer.signature), is_dialler=True)
        except (BadSeal, ChainRefused) as error:
            raise StreamBroken(f"its answer through the relay is not genuine: {error}") from None
        session = self.sessions.open(through, sealed)
        await session.urgent.write(encode_control(Ready()))
        self._adopt(peering, session, member)

    async def _welcome(self, through: Through, hello: SealedHello) -> None:
        versions = Hello(version_min=hello.version_min, version_max=hello.version_max, nonce=b"")
        version = common_version(versions)
        if version is None:
            through.send(SealedDecline(session=hello.session, reason=no_common_version(versions)))
            raise StreamBroken(no_common_version(versions))
        member = self._member(hello.chain, through.peer)
        greeting = Greeting(self._me.identity, self._me.swarm_id, hello.session, through.peer)
        offered = hello.version_min, hello.version_max
        greeting.check(member.public_key, hello.ephemeral_key, b"", offered, hello.signature)
        peering = self._owner.peering(through.peer)
        async with peering.answering(self._me.identity.peer) as may_answer:
            if not may_answer:
                through.send(SealedDecline(session=hello.session, reason="our own call came first", is_linked=True))
                return
            signature = greeting.sign(hello.ephemeral_key, (version,))
            sealed = greeting.agree(hello.ephemeral_key, (hello.signature, signature), is_dialler=False)
            session = self.sessions.open(through, sealed)
            welcome = SealedWelcome(
                session=hello.session,
                version=version,
                chain=self._chain,
                ephemeral_key=greeting.ephemeral_key,
                signature=signature,
            )
            through.send(welcome)
            await self._adopt_when_ready(peering, session, member)

    async def _adopt_when_ready(self, peering: Peering, session: RelayedSession, member: Member) -> None:
        try:
            async with asyncio.timeout(self._limits.dial_seconds_max):
                if not isinstance(decode_control(await session.read()), Ready):
                    raise StreamBroken("it answered the welcome with something else than Ready")
        except BaseException:
            session.close()
            raise
        self._adopt(peering, session, member)

    def _adopt(self, peering: Peering, session: RelayedSession, member: Member) -> None:
        async def bulk_lane(name: bytes) -> Stream:
            return session.bulk

        relay = session.through.link.peer
        link = Link(
            peering.peer,
            session.sealed.session,
            session.urgent,
            self._owner,
            self._limits,
            way=f"through relay {relay}",
            dial_lane=bulk_lane,
            num_lanes=1,
            relay=relay,
            overhead_bytes=session.overhead_bytes,
        )
        self._owner.joined(member)
        peering.adopt(link)

    def _member(self, chain: tuple[bytes, ...], peer: PeerId) -> Member:
        member = self._check_chain(chain)
        if member.peer != peer:
            raise BadSeal(f"a greeting in the name of {peer} shows the certificate of {member.peer}")
        return member
