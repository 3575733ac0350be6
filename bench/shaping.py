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

As a program, for measurements that must not share an interpreter with their network:

    python -m bench.shaping --target 127.0.0.1:5000 --one-way-seconds 0.025 --bytes-per-second 12.5e6 --loss 0.001

prints the port that it listens on, and reads the commands `stall`, `resume` and `reset`, one a line, from its input. It
keeps time to about 0.1 ms; `shaped_link` on a stock event loop only to about 1 ms, since epoll counts milliseconds.
"""

import argparse
import asyncio
import contextlib
import random
import selectors
import sys
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

SEGMENT_BYTES = 1448
CHUNK_BYTES = 16 << 10
RETRANSMISSION_SECONDS_MIN = 0.2
"""Linux's smallest retransmission timeout."""
AWAKE_SECONDS = 0.0005
"""The last bit of a delay is waited for awake, since a sleeper is woken late."""


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
    """A proxy at work in this process."""

    target: tuple[str, int]
    shape: Shape
    port: int = 0
    num_bytes: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    """Payload that passed, to the target and back; TLS records and gRPC frames included, TCP headers not."""
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _connections: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    _uplinks: dict[str, _Uplink] = field(default_factory=lambda: {"up": _Uplink(), "down": _Uplink()})
    _num_accepted: int = 0

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
        """One connection, until either side ends it or `reset`."""
        number = self._num_accepted
        self._num_accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._connections[number] = task
        try:
            there_reader, there_writer = await asyncio.open_connection(*self.target)
            try:
                await self._pass_both(number, (reader, writer), (there_reader, there_writer))
            finally:
                _abort(there_writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            _abort(writer)
            del self._connections[number]

    async def _pass_both(
        self,
        number: int,
        here: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        directions = [
            asyncio.create_task(self._pass("up", number, here[0], there[1])),
            asyncio.create_task(self._pass("down", number, there[0], here[1])),
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
                # The program is slowed down as a full socket buffer would: it may be this much ahead of the link.
                if (ahead := uplink.free_at - loop.time()) > 0.002:
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
    link = ShapedLink((target_host, target_port), shape)
    link.resume()
    server = await asyncio.start_server(link.serve, "127.0.0.1", 0, limit=CHUNK_BYTES * 4)
    link.port = server.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        server.close()
        link.reset()


@contextlib.asynccontextmanager
async def shaped_link_process(
    target_port: int, **shape: float
) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """The same in a process of its own: (port, process); arguments as those of `shaped_link`."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in shape.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.shaping",
        f"--target=127.0.0.1:{target_port}",
        *options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline()), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _main() -> None:
    parser = argparse.ArgumentParser(description="a shaped link, as a program")
    parser.add_argument("--target", required=True, metavar="HOST:PORT")
    parser.add_argument("--one-way-seconds", type=float, default=0.0)
    parser.add_argument("--bytes-per-second", type=float, default=float("inf"))
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    host, port = arguments.target.rsplit(":", 1)
    async with shaped_link(
        int(port),
        target_host=host,
        one_way_seconds=arguments.one_way_seconds,
        bytes_per_second=arguments.bytes_per_second,
        loss=arguments.loss,
        seed=arguments.seed,
    ) as link:
        print(link.port, flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        commands = {"stall": link.stall, "resume": link.resume, "reset": link.reset}
        while line := (await reader.readline()).decode().strip():
            commands[line]()


if __name__ == "__main__":
    # select() takes microseconds where epoll takes milliseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_main())
