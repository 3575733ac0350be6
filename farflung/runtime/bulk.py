"""Large messages in parts: cut when sent, taken by the lanes, put together in any order, given out in that of sending,
acknowledged, and timed."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy

from farflung.runtime.outbox import Overflow
from farflung.wire.control import MalformedFrame, Part, encode_control, part_bytes
from farflung.wire.message import MESSAGE_BYTES_MAX

NUM_INCOMPLETE_MAX = 64
"""Large messages of one peer that may be incomplete at one time; an honest one keeps to two or three."""
RATE_WEIGHT = 0.3
"""Of the newest message in the smoothed bandwidth."""
SENDING_SHARE_MIN = 0.2
"""At least so much of a message's time is taken to be its sending."""


@dataclass(slots=True)
class _Outgoing:
    number: int
    kind: str
    parts: Iterator[bytes]
    length: int
    num_bytes_left: int
    num_wire_bytes: int = 0
    started_at: float | None = None


class BulkOutbox:
    """Large messages that wait; several lanes take parts of the oldest, each as fast as it can."""

    def __init__(self, num_bytes_max: int, now: Callable[[], float], count: Callable[[str, int], None]) -> None:
        """`count(kind, num_bytes)` is told what a message takes on the wire when its last part is taken."""
        self.num_bytes = 0
        self.bytes_per_second: float | None = None
        self._now = now
        self._count = count
        self._num_bytes_max = num_bytes_max
        self._next_number = 0
        self._waiting: deque[_Outgoing] = deque()
        self._passing: deque[bytes] = deque()
        self._in_flight: dict[int, _Outgoing] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()

    def put(self, pieces: Sequence[bytes | memoryview], kind: str) -> None:
        """Add a message that is the pieces one after another.

        Pieces whose memory may change are copied here; others as their parts are taken, just before they are written.

        Raises:
            Overflow: the limit is passed; the message was not added.
        """
        size, number = sum(len(piece) for piece in pieces), self._next_number
        self._check_room(size)
        length = part_bytes(size)
        parts: Iterator[bytes] = (
            encode_control(Part(message=number, offset=offset, num_bytes_total=size, data=data))
            for offset, data in _cut(pieces, length)
        )
        if not all(map(_is_immutable, pieces)):
            parts = iter(list(parts))
        self.num_bytes += size
        self._waiting.append(_Outgoing(number, kind, parts, length, size))
        self._next_number += 1
        self._wake()

    def put_frame(self, frame: bytes) -> None:
        """Add a frame that is a part already, of a message that only passes through here. Raises Overflow as `put`."""
        self._check_room(len(frame))
        self.num_bytes += len(frame)
        self._passing.append(frame)
        self._wake()

    async def take(self) -> bytes:
        """The next part, as soon as there is one."""
        while not self._waiting and not self._passing:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if self._passing:
            frame = self._passing.popleft()
            self.num_bytes -= len(frame)
            return frame
        return self._next_part(self._waiting[0])

    def _next_part(self, message: _Outgoing) -> bytes:
        if message.started_at is None:
            message.started_at = self._now()
        part = next(message.parts)
        message.num_wire_bytes += len(part)
        taken = min(message.length, message.num_bytes_left)
        message.num_bytes_left -= taken
        self.num_bytes -= taken
        if message.num_bytes_left == 0:
            message.parts = iter(())  # lets go of the pieces
            self._waiting.popleft()
            self._in_flight[message.number] = message
            self._count(message.kind, message.num_wire_bytes)
        return part

    def arrived(self, number: int, round_trip_seconds: float) -> None:
        """The peer has the whole message: its time, without that of the way there and back, gives the bandwidth.

        Raises:
            MalformedFrame: no such message is under way.
        """
        message = self._in_flight.pop(number, None)
        if message is None:
            raise MalformedFrame(f"acknowledges large message {number}, which is not under way")
        assert message.started_at is not None
        seconds = self._now() - message.started_at
        # A round trip that was measured on a busy link may be longer than this one was.
        rate = message.num_wire_bytes / max(seconds - round_trip_seconds, SENDING_SHARE_MIN * seconds, 1e-6)
        before = self.bytes_per_second
        self.bytes_per_second = rate if before is None else before + RATE_WEIGHT * (rate - before)

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self._waiting and not self._in_flight and not self._passing

    def _check_room(self, num_bytes: int) -> None:
        if self.num_bytes + num_bytes > self._num_bytes_max:
            raise Overflow(f"{self.num_bytes} bytes of large messages already wait for it")

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)


def _is_immutable(piece: bytes | memoryview) -> bool:
    return isinstance(piece, bytes) or isinstance(piece.obj, bytes)


def _cut(pieces: Sequence[bytes | memoryview], length: int) -> Iterator[tuple[int, memoryview]]:
    """(offset, data) of every part; only those that span pieces are copied here."""
    offset, gathered = 0, bytearray()
    for piece in pieces:
        rest = memoryview(piece)
        while len(gathered) + len(rest) >= length:
            taken = length - len(gathered)
            data = memoryview(gathered + rest[:taken]) if gathered else rest[:taken]
            yield offset, data
            offset, gathered, rest = offset + length, bytearray(), rest[taken:]
        gathered += rest
    if gathered:
        yield offset, memoryview(gathered)


@dataclass(slots=True)
class _Incoming:
    buffer: memoryview
    """Memory that was not written yet, which the kernel hands out as it is: a lie about the size costs nothing."""
    missing: set[int]
    """Offsets of the parts still to come."""
    num_wire_bytes: int = 0


@dataclass(slots=True)
class BulkInbox:
    """Large messages of one peer that are incomplete, or that come after one that is."""

    num_bytes_max: int
    _incomplete: dict[int, _Incoming] = field(default_factory=dict[int, _Incoming])
    _early: dict[int, _Incoming] = field(default_factory=dict[int, _Incoming])
    """Whole, but lanes have overtaken each other: one sent before is not."""
    _num_bytes: int = 0
    _next_number: int = 0
    _next_out: int = 0

    def add(self, part: Part, num_wire_bytes: int) -> list[tuple[int, memoryview, int]]:
        """Take one part; what can be given out now: (number, message, its bytes on the wire), in order.

        Raises:
            MalformedFrame: it fits no message, came before, or the limit is passed.
        """
        incoming = self._incomplete.get(part.message) or self._begin(part)
        if len(incoming.buffer) != part.num_bytes_total or part.offset not in incoming.missing:
            raise MalformedFrame("a part of a large message that does not fit, or came before")
        end = min(part.offset + part_bytes(part.num_bytes_total), part.num_bytes_total)
        if len(part.data) != end - part.offset:
            raise MalformedFrame("a part of a large message with a wrong length")
        incoming.buffer[part.offset : end] = part.data
        incoming.missing.discard(part.offset)
        incoming.num_wire_bytes += num_wire_bytes
        if incoming.missing:
            return []
        self._early[part.message] = self._incomplete.pop(part.message)
        return list(self._out())

    def _out(self) -> Iterator[tuple[int, memoryview, int]]:
        while (whole := self._early.pop(self._next_out, None)) is not None:
            self._num_bytes -= len(whole.buffer)
            yield self._next_out, whole.buffer, whole.num_wire_bytes
            self._next_out += 1

    @property
    def is_idle(self) -> bool:
        """Nothing is incomplete."""
        return not self._incomplete and not self._early

    def _begin(self, part: Part) -> _Incoming:
        size = part.num_bytes_total
        if not 0 < size <= MESSAGE_BYTES_MAX or self._num_bytes + size > self.num_bytes_max:
            raise MalformedFrame(f"a large message of {size} bytes is over the limit")
        # Lanes overtake each other, but a number that is long past, or far ahead, is a mistake or an attack.
        is_past = part.message < self._next_out or part.message in self._early
        is_far = abs(part.message - self._next_number) > NUM_INCOMPLETE_MAX
        if is_past or is_far or len(self._incomplete) + len(self._early) >= NUM_INCOMPLETE_MAX:
            raise MalformedFrame("too many large messages at once")
        self._next_number = max(self._next_number, part.message + 1)
        self._num_bytes += size
        incoming = _Incoming(numpy.empty(size, numpy.uint8).data, set(range(0, size, part_bytes(size))))
        self._incomplete[part.message] = incoming
        return incoming
