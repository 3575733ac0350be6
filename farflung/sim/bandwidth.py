"""Bandwidth that messages share while they cross at the same time: a fluid model with max-min fair rates.

Each transfer has the pipes it crosses. At every start and end of a transfer, rates are set anew: the pipe that offers
its transfers the least is filled first, they get equal parts of it, and so on with what is left (progressive filling;
Bertsekas and Gallager, Data Networks, 6.5.2). It is what long TCP connections with equal round trips tend to.
"""

import asyncio
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import itemgetter

from farflung.sim.loop import Outside
from farflung.sim.topology import Pipe

# Transfers that end within this of each other end together; far below any latency.
SIMULTANEOUS_SECONDS = 1e-9


def fair_rates(ways: Mapping[int, Sequence[Pipe]]) -> dict[int, float]:
    """Max-min fair bytes per second for each transfer, given the pipes (of finite capacity) that it crosses."""
    single = _rates_of_single_pipes(ways)
    if single is not None:
        return single
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


def _rates_of_single_pipes(ways: Mapping[int, Sequence[Pipe]]) -> dict[int, float] | None:
    """The usual case, without the search: no pipe depends on another. In the order that filling would find."""
    crossing: dict[Hashable, tuple[float, list[int]]] = {}
    for transfer, pipes in ways.items():
        if len(pipes) != 1:
            return None
        pipe = pipes[0]
        crossing.setdefault(pipe.key, (pipe.bytes_per_second, []))[1].append(transfer)
    shares = [(capacity / len(transfers), transfers) for capacity, transfers in crossing.values()]
    return {transfer: share for share, transfers in sorted(shares, key=itemgetter(0)) for transfer in transfers}


class SharedBandwidth:
    """All transfers under way."""

    def __init__(self, loop: Outside) -> None:
        self._loop = loop
        self._num_started = 0
        self._ways: dict[int, Sequence[Pipe]] = {}
        self._bytes_left: dict[int, float] = {}
        self._done: dict[int, Callable[[], None]] = {}
        self._rates: dict[int, float] = {}
        self._as_of = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, pipes: Sequence[Pipe], num_bytes: int, done: Callable[[], None]) -> int:
        """Begin to move `num_bytes` over `pipes` (at least one); `done()` is called when the last byte has left.

        Returns a number for `stop`.
        """
        self._drain()
        self._num_started += 1
        transfer = self._num_started
        self._ways[transfer], self._bytes_left[transfer], self._done[transfer] = pipes, float(num_bytes), done
        self._share_anew()
        return transfer

    def stop(self, transfer: int) -> None:
        """Forget a transfer; `done` is not called."""
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
        ended = [
            transfer
            for transfer, rate in self._rates.items()
            if self._bytes_left[transfer] <= rate * SIMULTANEOUS_SECONDS
        ]
        callbacks = [self._done[transfer] for transfer in ended]
        for transfer in ended:
            self._forget(transfer)
        self._share_anew()
        for callback in callbacks:
            callback()
