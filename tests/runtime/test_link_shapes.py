"""A shaped link is as fast and as long as it says, also where whoever moves its bytes is woken late."""

import asyncio
import selectors
from typing import Any, cast

import pytest

from farflung.runtime.shaped_link import Shape, ShapedLink

NUM_BYTES = 1 << 20
LATE_SECONDS = 0.004
ROUND_SECONDS = 1e-4


class LateSelector(selectors.DefaultSelector):
    """Time passes only while it waits, and then a little more than was asked for."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout + LATE_SECONDS if timeout else ROUND_SECONDS
        return super().select(0)


class LateLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.late = LateSelector()
        super().__init__(self.late)

    def time(self) -> float:
        return self.late.now


class Arrivals:
    """A writer that notes when what comes in arrives."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        self.num_bytes += len(data)
        self.at.append(asyncio.get_running_loop().time())

    async def drain(self) -> None:
        pass


async def _passed(shape: Shape, num_connections: int) -> float:
    """Seconds that so many connections take for a megabyte."""
    link, all_arrived = ShapedLink(shape), [Arrivals() for _ in range(num_connections)]
    async with asyncio.TaskGroup() as group:
        for number, arrivals in enumerate(all_arrived):
            reader = asyncio.StreamReader(limit=1 << 16)
            reader.feed_data(bytes(NUM_BYTES // num_connections))
            reader.feed_eof()
            writer = cast(asyncio.StreamWriter, arrivals)
            group.create_task(link._pass("up", number, reader, writer))
    assert sum(arrivals.num_bytes for arrivals in all_arrived) == NUM_BYTES
    return max(arrivals.at[-1] for arrivals in all_arrived)


@pytest.mark.parametrize("num_connections", [1, 4])
@pytest.mark.parametrize("bytes_per_second", [1e6, 1e7])
def test_a_link_has_its_rate_and_its_delay(num_connections: int, bytes_per_second: float) -> None:
    shape = Shape(one_way_seconds=0.05, bytes_per_second=bytes_per_second)
    with asyncio.Runner(loop_factory=LateLoop) as runner:
        seconds = runner.run(_passed(shape, num_connections))
    ideal = NUM_BYTES / bytes_per_second + shape.one_way_seconds
    assert ideal <= seconds <= ideal + 3 * LATE_SECONDS
