"""The network door on real machines: actors above, links below."""

import asyncio
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from cryptography import x509

from farflung.runtime.acceptor import Acceptor
from farflung.runtime.dialer import Dialer
from farflung.runtime.handshake import Self
from farflung.runtime.lane import StreamBroken
from farflung.runtime.limits import NetworkLimits
from farflung.runtime.link import Link
from farflung.runtime.log import logger
from farflung.runtime.peering import Peering
from farflung.runtime.relay import Relay
from farflung.runtime.relayer import Relayer
from farflung.wire import message as envelope
from farflung.wire.certificate import TicketRole, load_chain, to_der
from farflung.wire.chain import IsRevoked, Member, check_chain
from farflung.wire.control import Relayed, RelayFailed
from farflung.wire.identity import Identity
from farflung.wire.message import MESSAGE_BYTES_MAX, MalformedMessage, Message, NoSuchActor
from farflung.wire.pieces import encode_pieces
from farflung.wire.ticket import Credentials, Ticket
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact, Receiver, TrafficMeter

if TYPE_CHECKING:
    from farflung.runtime.tracing import Tracing

NETWORK = "network"
"""Name under which the network's own decisions are noted."""


class GrpcNetwork:
    """Implements `world.doors.Network`. Made, used and closed on one event loop."""

    def __init__(
        self,
        identity: Identity,
        ticket: Ticket,
        traffic: TrafficMeter,
        note: Callable[[str, str], None],
        wall_seconds: Callable[[], float],
        limits: NetworkLimits | None = None,
        is_revoked: IsRevoked = lambda permission: False,
        tracing: "Tracing | None" = None,
    ) -> None:
        """`is_revoked`: whether a ticket's permission has been withdrawn; see `close_revoked`."""
        self._tracing = tracing
        self._limits = limits or NetworkLimits()
        credentials: Credentials = ticket.issue(identity, wall_seconds())
        own = check_chain(credentials.chain, credentials.authority, wall_seconds())
        der = tuple(to_der(one) for one in credentials.chain)
        me = Self(identity, ticket.swarm_id, own.tls_key_hash, der)
        self._identity = identity
        self._traffic = traffic
        self._note = note
        self._members: dict[PeerId, Member] = {identity.peer: own}
        self._is_revoked = is_revoked
        self._actors: dict[str, Receiver] = {}
        self._peerings: dict[PeerId, Peering] = {}
        self._is_closed = False
        self._random = random.Random(identity.peer)
        self._loop = asyncio.get_running_loop()

        def check(chain: list[x509.Certificate]) -> Member:
            return check_chain(chain, credentials.authority, wall_seconds(), is_revoked)

        def check_der(chain: tuple[bytes, ...]) -> Member:
            return check(load_chain(chain))

        self._dialer = Dialer(me, credentials, self, self._limits, check_der)
        self._acceptor = Acceptor(me, credentials, self, self._limits, check)
        self._relayer = Relayer(me, credentials, self, self._limits, check_der)
        self._relay = Relay(self._limits, self._link, self._count_relayed)

    # The door.

    @property
    def peer(self) -> PeerId:
        return self._identity.peer

    def listen(self, actor: str, receiver: Receiver) -> None:
        assert actor not in self._actors, f"the actor name {actor} is taken"
        self._actors[actor] = receiver

    def unlisten(self, actor: str) -> None:
        self._actors.pop(actor, None)

    def send(self, actor: str, destination: Address, message: object) -> None:
        assert isinstance(message, Message), f"{type(message).__name__} is not a message"
        traceparent = self._tracing.sent(destination.peer, message) if self._tracing is not None else ""
        pieces = encode_pieces(actor, destination.actor, message, traceparent)
        num_bytes = sum(len(piece) for piece in pieces)
        assert num_bytes <= MESSAGE_BYTES_MAX, f"a message of {num_bytes} bytes is over the limit"
        if self._is_closed:
            return
        if destination.peer == self.peer:
            frame = b"".join(pieces)
            self._loop.call_soon(self._deliver, self.peer, frame, len(frame))
        else:
            self.peering(destination.peer).send(pieces, envelope.kind(message))

    def introduce(self, peer: PeerId, contact: Contact) -> None:
        if peer != self.peer and not self._is_closed:
            self.peering(peer).introduce(contact)

    def round_trip_seconds(self, peer: PeerId) -> float | None:
        link = self._link(peer)
        return link.round_trip_seconds if link else None

    def bytes_per_second(self, peer: PeerId) -> float | None:
        link = self._link(peer)
        return link.bytes_per_second if link else None

    # Beyond the door: for the node that owns this network.

    async def open(self, host: str, port: int) -> int:
        """Take calls; the port. Raises ValueError as `Acceptor.listen`."""
        return await self._acceptor.listen(host, port)

    def advertise(self, endpoints: tuple[str, ...]) -> None:
        """Where others reach what `open` listens on; peers that accept no calls are asked to call there."""
        self._relayer.endpoints = endpoints

    def keep(self, peer: PeerId, is_kept: bool = True) -> None:
        """Hold a link to `peer` open (relays, rendezvous), reopening it whenever it breaks."""
        if peer != self.peer:
            self.peering(peer).keep(is_kept)

    async def drop(self, peer: PeerId) -> None:
        """End the link to `peer`, if one is open, as this side's wish."""
        link = self._link(peer)
        if link is not None:
            await link.close("it hung up")
            self.ended(link, "hung up here")

    async def linked(self, peer: PeerId, seconds: float) -> bool:
        """Call `peer` if need be, and wait for a link to it; False when the time is over first."""
        self.peering(peer).call()
        return await self.peering(peer).linked(seconds)

    def role(self, peer: PeerId) -> TicketRole | None:
        """What the certificate of a peer that was linked to permits; None for one that was not."""
        member = self._members.get(peer)
        return member.role if member is not None else None

    def close_revoked(self) -> list[PeerId]:
        """Close the links of peers whose permission has been withdrawn; who they are."""
        found = [link for link in map(self._link, list(self._peerings)) if link is not None]
        revoked = [link for link in found if any(map(self._is_revoked, self._members[link.peer].permissions))]
        for link in revoked:
            link.drop()
            self.ended(link, "its ticket has been revoked")
        return [link.peer for link in revoked]

    def links(self) -> dict[PeerId, str]:
        """Peers with an open link, and by what way."""
        return {peer: peering.link.way for peer, peering in self._peerings.items() if peering.link is not None}

    async def close(self) -> None:
        """Say goodbye to all peers, stop taking calls, drop what waits."""
        self._is_closed = True
        for peering in self._peerings.values():
            peering.stop()
        self._relayer.stop()
        open_links = [peering.link for peering in self._peerings.values() if peering.link is not None]
        await asyncio.gather(*(link.close("it left") for link in open_links))
        await self._acceptor.close()
        if self._tracing is not None:
            self._tracing.close()

    # What peerings, links and the acceptor tell.

    def peering(self, peer: PeerId) -> Peering:
        found = self._peerings.get(peer)
        if found is None:
            found = self._peerings[peer] = Peering(peer, self, self._limits, self._random)
        return found

    def joined(self, member: Member) -> None:
        self._members[member.peer] = member

    def note(self, sentence: str) -> None:
        self._note(NETWORK, sentence)

    async def dial(self, peering: Peering, contact: Contact) -> None:
        if self._loop.time() < peering.refused_until:
            raise StreamBroken("it broke the protocol a moment ago")
        relays = tuple(relay for relay in contact.relays if relay not in (self.peer, peering.peer))
        reasons: list[str] = []
        if contact.endpoints:
            try:
                await self._dialer.dial(peering, contact.endpoints)
            except StreamBroken as error:
                reasons.append(str(error))
        for relay in relays:
            if peering.link is not None:
                return
            try:
                await self._relayer.dial(peering, relay)
            except StreamBroken as error:
                reasons.append(f"through {relay}: {error}")
        if peering.link is None:
            raise StreamBroken("; ".join(reasons) or "it has no relay but this node, and has not called")

    def received(self, link: Link, frame: bytes | memoryview, num_wire_bytes: int) -> None:
        self._deliver(link.peer, frame, num_wire_bytes, link)

    def received_relay(self, link: Link, frame: Relayed | RelayFailed) -> None:
        if isinstance(frame, RelayFailed):
            self._relayer.sessions.failed(link, frame)
        elif frame.destination == self.peer:
            self._relayer.receive(link, frame)
        elif frame.source != link.peer:
            self.misbehaved(link, "it sent a frame for another peer in the name of a third")
        else:
            self._relay.forward(frame)

    def misbehaved(self, link: Link, reason: str) -> None:
        self.note(f"{link.peer} broke the protocol: {reason}; its link is closed")
        self.peering(link.peer).refused_until = self._loop.time() + self._limits.refusal_seconds
        link.drop()
        self.ended(link, f"it broke the protocol: {reason}")

    def ended(self, link: Link, reason: str) -> None:
        if not self._is_closed:
            self.note(f"lost {link.peer}: {reason}")
            self.gone(link)
            self.peering(link.peer).ended(link, reason)

    def gone(self, link: Link) -> None:
        self._relayer.sessions.lost(link)
        if link.relay is None:
            self._relay.forget(link.peer)

    def counted(self, peer: PeerId, kind: str, *, sent: bool, num_bytes: int) -> None:
        self._traffic.count(peer, kind, sent=sent, num_bytes=num_bytes)

    def tell_lost(self, peer: PeerId, reason: str) -> None:
        """Soon, not now: the one who sent is still in the middle of something."""
        self._loop.call_soon(self._tell_lost, peer, reason, list(self._actors.items()))

    def _tell_lost(self, peer: PeerId, reason: str, actors: list[tuple[str, Receiver]]) -> None:
        for actor, receiver in actors:
            if self._actors.get(actor) is not receiver:
                continue
            try:
                receiver.lost(peer, reason)
            except Exception:
                logger.exception("an actor failed when told that %s was lost", peer)

    def _count_relayed(self, peer: PeerId, sent: bool, num_bytes: int) -> None:
        self.counted(peer, Relayed.__name__, sent=sent, num_bytes=num_bytes)

    def _link(self, peer: PeerId) -> Link | None:
        peering = self._peerings.get(peer)
        return peering.link if peering else None

    def _deliver(self, peer: PeerId, frame: bytes | memoryview, num_wire_bytes: int, link: Link | None = None) -> None:
        try:
            source_actor, target_actor, message, traceparent = envelope.decode_traced(frame)
        except MalformedMessage as error:
            assert link is not None, f"our own message cannot be read: {error}"
            self.misbehaved(link, f"a malformed message ({error})")
            return
        if link is not None:
            self.counted(peer, envelope.kind(message), sent=False, num_bytes=num_wire_bytes)
        receiver = self._actors.get(target_actor)
        if receiver is None:
            if not isinstance(message, NoSuchActor):
                self.send(target_actor, Address(peer, source_actor), NoSuchActor(actor=target_actor))
            return
        following = self._tracing.receiving(peer, message, traceparent) if self._tracing is not None else nullcontext()
        try:
            with following:
                receiver.deliver(Address(peer, source_actor), message)
        except Exception:
            # A defect of one actor must not cost the others their links.
            logger.exception("actor %s failed on %s from %s", target_actor, envelope.kind(message), peer)
