"""A link: everything that is open between this node and one peer.

    urgent lane   one stream; messages up to `small_bytes_max`, pings, and the other control frames, in order
    bulk lanes    opened with the first large message; parts of large messages, each lane as fast as it can

The side that dialled the link dials its bulk lanes too, since the other side may be unable to.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from farflung.runtime.bulk import BulkInbox, BulkOutbox
from farflung.runtime.heartbeat import Heartbeat
from farflung.runtime.lane import Lane, Stream
from farflung.runtime.limits import NetworkLimits
from farflung.runtime.outbox import Outbox, Overflow
from farflung.wire.control import (
    Arrived,
    Control,
    Goodbye,
    MalformedFrame,
    OpenLanes,
    Part,
    Ping,
    Pong,
    Relayed,
    RelayFailed,
    decode_control,
    encode_control,
    is_control,
)
from farflung.world.address import PeerId

GOODBYE_SECONDS = 1.0
"""How long the end of a link waits for its last frame to arrive."""


class LinkOwner(Protocol):
    """Whom a link tells what happens to it."""

    def received(self, link: "Link", frame: bytes | memoryview, num_wire_bytes: int) -> None:
        """An envelope came."""
        ...

    def received_relay(self, link: "Link", frame: Relayed | RelayFailed) -> None:
        """A frame came that is from, or for, another peer."""
        ...

    def misbehaved(self, link: "Link", reason: str) -> None:
        """The peer sent what no honest peer sends."""
        ...

    def ended(self, link: "Link", reason: str) -> None:
        """The link broke or the peer closed it. Told once."""
        ...

    def counted(self, peer: PeerId, kind: str, *, sent: bool, num_bytes: int) -> None:
        """Bytes met the wire."""
        ...


class Link:
    """One open link; made when both sides have agreed."""

    def __init__(
        self,
        peer: PeerId,
        name: bytes,
        stream: Stream,
        owner: LinkOwner,
        limits: NetworkLimits,
        *,
        way: str,
        dial_lane: Callable[[bytes], Awaitable[Stream]] | None = None,
        num_lanes: int | None = None,
        relay: PeerId | None = None,
        overhead_bytes: int = 0,
    ) -> None:
        """`dial_lane(name)` opens one more stream of this link; None on the side that was called. `way`: for people.

        `num_lanes`: how many bulk lanes, if not as many as the limits say.
        `relay`: who passes the frames on, if somebody does, and `overhead_bytes`: what that adds to each on the wire.
        """
        self.peer = peer
        self.relay = relay
        self.name = name
        self.way = way
        self._owner = owner
        self._limits = limits
        self._dial_lane = dial_lane
        self._num_lanes = num_lanes or limits.num_bulk_lanes
        self._overhead_bytes = overhead_bytes
        self._outbox = Outbox(limits.urgent_queue_bytes_max)
        loop = asyncio.get_running_loop()
        self._bulk_outbox = BulkOutbox(limits.bulk_queue_bytes_max, loop.time, self._count_sent)
        self._bulk_inbox = BulkInbox(limits.incoming_bytes_max)
        self._bulk_lanes: list[Lane] = []
        self._opening: asyncio.Task[None] | None = None
        self.is_open = True
        self.urgent = Lane(stream, self._outbox, self._take, self._urgent_ended)
        self._heartbeat = Heartbeat(
            limits,
            lambda number: self.send_control(Ping(number=number)),
            self._fail,
            is_caller=dial_lane is not None,
        )

    @property
    def round_trip_seconds(self) -> float | None:
        """Smoothed; None before the first answer."""
        return self._heartbeat.round_trip_seconds

    @property
    def bytes_per_second(self) -> float | None:
        """Smoothed over large messages; None before the first."""
        return self._bulk_outbox.bytes_per_second

    def send(self, pieces: Sequence[bytes | memoryview], kind: str) -> None:
        """Queue an envelope, given in pieces; a full queue ends the link."""
        try:
            if sum(len(piece) for piece in pieces) <= self._limits.small_bytes_max:
                frame = b"".join(pieces) if len(pieces) > 1 else bytes(pieces[0])
                self._outbox.put(frame)
                self._count_sent(kind, len(frame))
            else:
                self._bulk_outbox.put(pieces, kind)
                self._want_lanes()
        except Overflow as error:
            self._fail(f"it takes messages too slowly: {error}")

    def send_control(self, frame: Control) -> None:
        """Queue a control frame on the urgent lane; a full queue ends the link."""
        data = encode_control(frame)
        try:
            self._outbox.put(data)
        except Overflow as error:
            self._fail(f"it takes messages too slowly: {error}")
            return
        self._count_sent(type(frame).__name__, len(data))

    def pass_on(self, frame: Relayed) -> None:
        """Queue a frame between the peer of this link and another one.

        Raises:
            Overflow: too much waits; the link stays.
        """
        data = encode_control(frame)
        if self._outbox.num_bytes + self._bulk_outbox.num_bytes + len(data) > self._limits.relay_queue_bytes_max:
            raise Overflow("too much waits for it")
        if frame.is_bulk:
            self._bulk_outbox.put_frame(data)
            self._want_lanes()
        else:
            self._outbox.put(data)

    def add_bulk_lane(self, stream: Stream) -> Lane | None:
        """The peer dialled one more lane of this link; None if there are enough already."""
        if len(self._bulk_lanes) >= self._num_lanes:
            return None
        lane = Lane(stream, self._bulk_outbox, self._take, self._bulk_ended)
        self._bulk_lanes.append(lane)
        return lane

    async def close(self, reason: str) -> None:
        """Say goodbye and end when the peer has hung up on hearing it, which shows that it has; or soon."""
        if self.is_open:
            self.send_control(Goodbye(reason=reason))
            self.is_open = False
            await asyncio.wait([self.urgent.closed], timeout=GOODBYE_SECONDS)
        self.drop()

    def drop(self) -> None:
        """End at once and tell nobody."""
        self.is_open = False
        self._heartbeat.stop()
        if self._opening is not None and self._opening is not asyncio.current_task():
            self._opening.cancel()
        for lane in [self.urgent, *self._bulk_lanes]:
            lane.close()

    def _fail(self, reason: str) -> None:
        if self.is_open:
            self.drop()
            self._owner.ended(self, reason)

    def _count_sent(self, kind: str, num_bytes: int) -> None:
        self._owner.counted(self.peer, kind, sent=True, num_bytes=num_bytes + self._overhead_bytes)

    def _urgent_ended(self, lane: Lane, reason: str) -> None:
        self._fail(reason)

    def _bulk_ended(self, lane: Lane, reason: str) -> None:
        self._bulk_lanes.remove(lane)
        if not self._bulk_outbox.is_idle or not self._bulk_inbox.is_idle:
            self._fail(f"a lane broke with a large message under way: {reason}")

    def _take(self, frame: bytes) -> None:
        self._heartbeat.heard()
        if not is_control(frame):
            self._owner.received(self, frame, len(frame) + self._overhead_bytes)
            return
        try:
            self._take_control(decode_control(frame), len(frame))
        except MalformedFrame as error:
            self._owner.misbehaved(self, str(error))

    def _take_control(self, frame: Control, num_bytes: int) -> None:
        num_bytes += self._overhead_bytes
        if not isinstance(frame, Part | Relayed):
            self._owner.counted(self.peer, type(frame).__name__, sent=False, num_bytes=num_bytes)
        match frame:
            case Ping(number=number):
                self._heartbeat.asked()
                self.send_control(Pong(number=number))
            case Pong(number=number):
                self._heartbeat.answered(number)
            case Part():
                self._take_part(frame, num_bytes)
            case Arrived(message=message):
                self._bulk_outbox.arrived(message, self.round_trip_seconds or 0.0)
            case Relayed() | RelayFailed():
                self._owner.received_relay(self, frame)
            case OpenLanes() if self._dial_lane is not None:
                self._want_lanes()
            case Goodbye(reason=reason):
                self._fail(reason[:200])
            case _:
                raise MalformedFrame(f"a {type(frame).__name__} frame has no place in an open link")

    def _take_part(self, part: Part, num_bytes: int) -> None:
        for number, message, num_wire_bytes in self._bulk_inbox.add(part, num_bytes):
            self.send_control(Arrived(message=number))
            self._owner.received(self, message, num_wire_bytes)

    def _want_lanes(self) -> None:
        if self._bulk_lanes or self._opening is not None:
            return
        if self._dial_lane is not None:
            self._opening = asyncio.create_task(self._open_lanes(self._dial_lane))
        else:
            self.send_control(OpenLanes())

    async def _open_lanes(self, dial_lane: Callable[[bytes], Awaitable[Stream]]) -> None:
        async def open_one() -> None:
            stream = await dial_lane(self.name)
            if self.add_bulk_lane(stream) is None:
                stream.close()

        attempts = (open_one() for _ in range(self._num_lanes))
        outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        self._opening = None
        # Fewer lanes only carry less; without any, large messages would wait for ever.
        if not self._bulk_lanes:
            self._fail(f"no lane for large messages could be opened: {outcomes[0]}")
