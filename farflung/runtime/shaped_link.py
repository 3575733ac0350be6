"""Links with delay, a rate and losses between real programs: a TCP proxy in a process of its own.

What it models, per connection and direction, in order:

- rate: bytes leave one after another at `bytes_per_second`; the connections of one proxy share it, each direction
  alone, as they share one uplink (first come, first served, in pieces of at most 16 KiB).
- delay: what has left arrives `one_way_seconds` later.
- loss: each segment of 1448 bytes is lost with probability `loss`, seeded. TCP repeats a lost segment and hands nothing
  that came after it to the program before, so a loss is a stall of that connection and direction: of one round trip and
  a half (fast retransmit) when enough segments follow, which bulk traffic has; of 0.2 s plus one round trip (the timer
  of retransmission) when a small message loses one of its last segments. What it does not model: that a loss also
  shrinks TCP's window, so the rate after losses is kinder than a real long link's.
- `stall` and `reset`: a link that hangs, or is cut, on command.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

SEGMENT_BYTES = 1448
CHUNK_BYTES = 16 << 10
RETRANSMISSION_SECONDS_MIN = 0.2
"""Linux's smallest retransmission timeout."""
QUEUE_SECONDS = 0.01
"""A connection hands over more as soon as less than this waits to leave, as at a router with a short queue."""
AWAKE_SECONDS = 0.0005
"""The last bit of a delay is waited for awake, since a sleeper is woken late."""


End = tuple[asyncio.StreamReader, asyncio.StreamWriter]
"""Of a connection."""


@dataclass(kw_only=True)
class Shape:
    """One link."""

    one_way_seconds: float = 0.0
    bytes_per_second: float = float("inf")
    loss: float = 0.0
    """Probability that a segment is lost."""
    seed: int = 0


@dataclass
class _Uplink:
    """One direction of the link, shared by all connections: when it is next free."""

    free_at: float = 0.0


@dataclass
class ShapedLink:
    """A link at work in this process: what passes `carry` shares it."""

    shape: Shape
    target: tuple[str, int] = ("", 0)
    """Of connections that `serve` accepts."""
    port: int = 0
    """Where it listens."""
    num_bytes: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    """Payload that passed, to the target and back; TLS records and gRPC frames included, TCP headers not."""
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _connections: dict[int, asyncio.Task[None]] = field(default_factory=dict[int, "asyncio.Task[None]"])
    _uplinks: dict[str, _Uplink] = field(default_factory=lambda: {"up": _Uplink(), "down": _Uplink()})
    _num_accepted: int = 0

    def __post_init__(self) -> None:
        self.resume()

    def stall(self) -> None:
        """Nothing passes any more, nobody is told."""
        self._flowing.clear()

    def resume(self) -> None:
        """What was held back passes now."""
        self._flowing.set()

    def reset(self) -> None:
        """Cut all connections; new ones may be made."""
        for task in list(self._connections.values()):
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to `target`, until either side ends it or `reset`."""
        await self.carry((reader, writer), self.target)

    async def carry(self, here: End, target: tuple[str, int], *, is_turned: bool = False) -> None:
        """One connection, until either side ends it or `reset`; `is_turned`: it was dialled at the other end."""
        number = self._num_accepted
        self._num_accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._connections[number] = task
        try:
            there = await asyncio.open_connection(*target)
            try:
                await self._pass_both(number, here, there, ("down", "up") if is_turned else ("up", "down"))
            finally:
                _abort(there[1])
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            _abort(here[1])
            del self._connections[number]

    async def _pass_both(self, number: int, here: End, there: End, names: tuple[str, str]) -> None:
        directions = [
            asyncio.create_task(self._pass(names[0], number, here[0], there[1])),
            asyncio.create_task(self._pass(names[1], number, there[0], here[1])),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _pass(self, name: str, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        flight: deque[tuple[float, bytes]] = deque()
        came = asyncio.Event()
        landing = asyncio.create_task(self._land(flight, came, writer))
        losses = random.Random(f"{self.shape.seed}:{number}:{name}")
        loop, uplink, arrives_at = asyncio.get_running_loop(), self._uplinks[name], 0.0
        try:
            while (data := await reader.read(CHUNK_BYTES)) and not landing.done():
                uplink.free_at = max(uplink.free_at, loop.time()) + len(data) / self.shape.bytes_per_second
                arrives_at = max(arrives_at, uplink.free_at + self.shape.one_way_seconds + self._repeats(data, losses))
                flight.append((arrives_at, data))
                came.set()
                self.num_bytes[name] += len(data)
                # The program is slowed down as a full queue would, but not so much that the link has nothing to send
                # when this process is woken late.
                if (ahead := uplink.free_at - loop.time() - QUEUE_SECONDS) > 0:
                    await asyncio.sleep(ahead)
            flight.append((arrives_at, b""))
            came.set()
            await landing
        finally:
            landing.cancel()

    async def _land(
        self, flight: deque[tuple[float, bytes]], came: asyncio.Event, writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not flight:
                came.clear()
                await came.wait()
            arrives_at, data = flight.popleft()
            if (wait := arrives_at - loop.time() - AWAKE_SECONDS) > 0:
                await asyncio.sleep(wait)
            while loop.time() < arrives_at:  # noqa: ASYNC110 (no event tells of a moment)
                await asyncio.sleep(0)
            await self._flowing.wait()
            if not data:
                return
            writer.write(data)
            await writer.drain()

    def _repeats(self, data: bytes, losses: random.Random) -> float:
        """How much later `data` arrives because segments of it were lost."""
        if not self.shape.loss:
            return 0.0
        round_trip = 2 * self.shape.one_way_seconds
        num_segments = -(-len(data) // SEGMENT_BYTES)
        lost = [losses.random() < self.shape.loss for _ in range(num_segments)]
        if not any(lost):
            return 0.0
        # Three later segments tell the sender of the loss; without them only its timer does.
        is_told = len(data) == CHUNK_BYTES or any(lost[:-3])
        return 1.5 * round_trip if is_told else RETRANSMISSION_SECONDS_MIN + round_trip


def _abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@contextlib.asynccontextmanager
async def shaped_link(
    target_port: int,
    *,
    one_way_seconds: float = 0.0,
    bytes_per_second: float = float("inf"),
    loss: float = 0.0,
    seed: int = 0,
    target_host: str = "127.0.0.1",
) -> AsyncIterator[ShapedLink]:
    """A link to `target_port` that listens on `.port` of this machine, in this process and on this event loop."""
    shape = Shape(one_way_seconds=one_way_seconds, bytes_per_second=bytes_per_second, loss=loss, seed=seed)
    link = ShapedLink(shape, (target_host, target_port))
    server = await asyncio.start_server(link.serve, "127.0.0.1", 0, limit=CHUNK_BYTES * 4)
    link.port = server.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        server.close()
        link.reset()
