"""Bandwidth that messages share while they cross at the same time: a fluid model with max-min fair rates.

Each transfer has the pipes it crosses. At every start and end of a transfer, rates are set anew: the pipe that offers
its transfers the least is filled first, they get equal parts of it, and so on with what is left (progressive filling;
Bertsekas and Gallager, Data Networks, 6.5.2). It is what long TCP connections with equal round trips tend to.

Usually every transfer crosses one pipe. No pipe depends on another then, and those that share one are alike: each has
moved as many bytes since it began as any other, so that who ends next is known without looking at all of them.
"""

import asyncio
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Protocol

from farflung.sim.loop import Outside
from farflung.sim.topology import Pipe

SIMULTANEOUS_SECONDS = 1e-9
"""Transfers that end within this of each other end together; far below any latency."""


def simultaneous_seconds(now: float) -> float:
    """The same where the clock still has steps as small: later on, one of its own, since it cannot go by less."""
    return max(SIMULTANEOUS_SECONDS, math.ulp(now))


def fair_rates(ways: Mapping[int, Sequence[Pipe]]) -> dict[int, float]:
    """Max-min fair bytes per second for each transfer, given the pipes (of finite capacity) that it crosses."""
    left: dict[Hashable, float] = {}
    crossing: dict[Hashable, dict[int, None]] = {}
    for transfer, pipes in ways.items():
        for pipe in pipes:
            left[pipe.key] = pipe.bytes_per_second
            crossing.setdefault(pipe.key, {})[transfer] = None
    rates = {transfer: math.inf for transfer, pipes in ways.items() if not pipes}
    while crossing:
        narrowest = min(crossing, key=lambda key: left[key] / len(crossing[key]))
        share = left[narrowest] / len(crossing[narrowest])
        for transfer in list(crossing[narrowest]):
            rates[transfer] = share
            for key in dict.fromkeys(pipe.key for pipe in ways[transfer]):
                left[key] = max(0.0, left[key] - share)
                del crossing[key][transfer]
                if not crossing[key]:
                    del crossing[key]
    return rates


class SharedBandwidth:
    """All transfers under way."""

    def __init__(self, loop: Outside) -> None:
        self._loop = loop
        self._num_started = 0
        self._pipes: dict[Hashable, _LonePipe] = {}
        """While every transfer crosses one pipe."""
        self._pipe_of: dict[int, Hashable] = {}
        self._filling = _Filling(loop)
        """While there are others, and until it is empty."""

    def start(self, pipes: Sequence[Pipe], num_bytes: int, done: Callable[[], None]) -> int:
        """Begin to move `num_bytes` over `pipes` (at least one); `done()` is called when the last byte has left.

        Returns a number for `stop`.
        """
        self._num_started += 1
        if len(pipes) > 1 or self._filling.is_busy:
            self._fill_all()
            self._filling.start(self._num_started, pipes, float(num_bytes), done)
        else:
            (pipe,) = pipes
            self._pipe_of[self._num_started] = pipe.key
            if pipe.key not in self._pipes:
                self._pipes[pipe.key] = _LonePipe(self._loop, pipe, self._ended)
            self._pipes[pipe.key].start(self._num_started, float(num_bytes), done)
        return self._num_started

    def stop(self, transfer: int) -> None:
        """Forget a transfer; `done` is not called."""
        if transfer in self._pipe_of:
            self._pipes[self._pipe_of[transfer]].stop(transfer)
        else:
            self._filling.stop(transfer)

    def _ended(self, pipe: Pipe, transfers: Sequence[int], *, is_empty: bool) -> None:
        for transfer in transfers:
            del self._pipe_of[transfer]
        if is_empty:
            del self._pipes[pipe.key]

    def _fill_all(self) -> None:
        for transfer, key in self._pipe_of.items():
            lone = self._pipes[key]
            self._filling.take(transfer, [lone.pipe], *lone.state(transfer))
        for lone in self._pipes.values():
            lone.clear()
        self._pipes.clear()
        self._pipe_of.clear()


class _Ended(Protocol):
    def __call__(self, pipe: Pipe, transfers: Sequence[int], *, is_empty: bool) -> None: ...


class _LonePipe:
    """One pipe and its transfers, which cross nothing else."""

    def __init__(self, loop: Outside, pipe: Pipe, ended: _Ended) -> None:
        self.pipe = pipe
        self._loop = loop
        self._ended = ended
        self._moved = 0.0
        """Bytes, of each transfer that has been there all the time."""
        self._as_of = loop.time()
        self._ends: list[tuple[float, int]] = []
        """(when so much is moved, that transfer has ended); those that were stopped are passed over."""
        self._transfers: dict[int, tuple[float, Callable[[], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, transfer: int, num_bytes: float, done: Callable[[], None]) -> None:
        self._drain()
        end = self._moved + num_bytes
        self._transfers[transfer] = end, done
        heappush(self._ends, (end, transfer))
        self._wait_anew()

    def stop(self, transfer: int) -> None:
        self._drain()
        self._forget([transfer])

    def state(self, transfer: int) -> tuple[float, Callable[[], None]]:
        """(bytes that are left, what is called at its end)."""
        self._drain()
        end, done = self._transfers[transfer]
        return max(0.0, end - self._moved), done

    def clear(self) -> None:
        """Forget all transfers."""
        self._transfers.clear()
        self._wait_anew()

    def _drain(self) -> None:
        now = self._loop.time()
        if self._transfers:
            self._moved += (now - self._as_of) * self._share
        self._as_of = now

    @property
    def _share(self) -> float:
        return self.pipe.bytes_per_second / len(self._transfers)

    def _wait_anew(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._ends and self._ends[0][1] not in self._transfers:
            heappop(self._ends)
        if self._ends:
            left = max(0.0, self._ends[0][0] - self._moved)
            self._timer = self._loop.call_later(left / self._share, self._end)

    def _end(self) -> None:
        self._drain()
        ended: list[int] = []
        enough = self._moved + self._share * simultaneous_seconds(self._as_of)
        while self._ends and self._ends[0][0] <= enough:
            _, transfer = heappop(self._ends)
            if transfer in self._transfers:
                ended.append(transfer)
        callbacks = [self._transfers[transfer][1] for transfer in sorted(ended)]
        self._forget(ended)
        for callback in callbacks:
            callback()

    def _forget(self, transfers: Sequence[int]) -> None:
        for transfer in transfers:
            del self._transfers[transfer]
        self._wait_anew()
        self._ended(self.pipe, transfers, is_empty=not self._transfers)


class _Filling:
    """Transfers that cross pipes of which others cross several."""

    def __init__(self, loop: Outside) -> None:
        self._loop = loop
        self._ways: dict[int, Sequence[Pipe]] = {}
        self._bytes_left: dict[int, float] = {}
        self._done: dict[int, Callable[[], None]] = {}
        self._rates: dict[int, float] = {}
        self._as_of = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_busy(self) -> bool:
        return bool(self._ways)

    def start(self, transfer: int, pipes: Sequence[Pipe], num_bytes: float, done: Callable[[], None]) -> None:
        self._drain()
        self.take(transfer, pipes, num_bytes, done)
        self._share_anew()

    def take(self, transfer: int, pipes: Sequence[Pipe], num_bytes: float, done: Callable[[], None]) -> None:
        """One more, before rates are set anew."""
        self._ways[transfer], self._bytes_left[transfer], self._done[transfer] = pipes, num_bytes, done

    def stop(self, transfer: int) -> None:
        if transfer in self._ways:
            self._drain()
            self._forget(transfer)
            self._share_anew()

    def _forget(self, transfer: int) -> None:
        for table in (self._ways, self._bytes_left, self._done):
            del table[transfer]

    def _drain(self) -> None:
        seconds = self._loop.time() - self._as_of
        self._as_of = self._loop.time()
        for transfer, rate in self._rates.items():
            if transfer in self._bytes_left:
                self._bytes_left[transfer] = max(0.0, self._bytes_left[transfer] - rate * seconds)

    def _share_anew(self) -> None:
        self._rates = fair_rates(self._ways)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._rates:
            soonest = min(self._bytes_left[transfer] / rate for transfer, rate in self._rates.items())
            self._timer = self._loop.call_later(soonest, self._end)

    def _end(self) -> None:
        self._drain()
        seconds = simultaneous_seconds(self._as_of)
        ended = [transfer for transfer, rate in self._rates.items() if self._bytes_left[transfer] <= rate * seconds]
        callbacks = [self._done[transfer] for transfer in ended]
        for transfer in ended:
            self._forget(transfer)
        self._share_anew()
        for callback in callbacks:
            callback()
