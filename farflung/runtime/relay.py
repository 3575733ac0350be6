"""Passing frames on between two peers that both hold a link to this node, within limits for each pair."""

import asyncio
from collections import deque
from collections.abc import Callable

from farflung.runtime.limits import NetworkLimits
from farflung.runtime.link import Link
from farflung.runtime.outbox import Overflow
from farflung.wire.control import Relayed, RelayFailed
from farflung.world.address import PeerId

BURST_SECONDS = 0.25
"""A pair that was quiet may send this much of its rate at once."""


class Relay:
    """The relay of one node."""

    def __init__(
        self,
        limits: NetworkLimits,
        link_to: Callable[[PeerId], Link | None],
        counted: Callable[[PeerId, bool, int], None],
    ) -> None:
        """`link_to(peer)`: the open link, if any. `counted(peer, sent, num_bytes)` is told what passes."""
        self._limits = limits
        self._link_to = link_to
        self._counted = counted
        self._flows: dict[tuple[PeerId, PeerId], _Flow] = {}

    def forward(self, frame: Relayed) -> None:
        """Pass a frame on, now or when its pair's rate allows; tell its source if that cannot be."""
        self._counted(frame.source, False, len(frame.data))
        pair = frame.source, frame.destination
        if self._flows.get(pair) is None:
            self._flows[pair] = _Flow(self._limits, self._deliver, self._refuse)
        self._flows[pair].put(frame)

    def forget(self, peer: PeerId) -> None:
        """The link to `peer` is gone, and with it what waited for it or came from it."""
        for pair in [pair for pair in self._flows if peer in pair]:
            self._flows.pop(pair).stop()
            other = pair[0] if pair[1] == peer else pair[1]
            self._tell(other, peer, "the relay lost it")

    def _deliver(self, frame: Relayed) -> None:
        target = self._link_to(frame.destination)
        if target is None or target.relay is not None:
            self._tell(frame.source, frame.destination, "the relay has no link to it")
            return
        try:
            target.pass_on(frame)
        except Overflow:
            self._refuse(frame)
            return
        self._counted(frame.destination, True, len(frame.data))

    def _refuse(self, frame: Relayed) -> None:
        self._tell(frame.source, frame.destination, "more waits at the relay than may")

    def _tell(self, peer: PeerId, about: PeerId, reason: str) -> None:
        link = self._link_to(peer)
        if link is not None:
            link.send_control(RelayFailed(destination=about, reason=reason))


class _Flow:
    """Frames of one pair in one direction, at no more than the rate."""

    def __init__(
        self, limits: NetworkLimits, deliver: Callable[[Relayed], None], refuse: Callable[[Relayed], None]
    ) -> None:
        self._limits = limits
        self._deliver = deliver
        self._refuse = refuse
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Relayed] = deque()
        self._num_bytes_waiting = 0
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, frame: Relayed) -> None:
        if self._num_bytes_waiting + len(frame.data) > self._limits.relay_queue_bytes_max:
            self._refuse(frame)
            return
        self._waiting.append(frame)
        self._num_bytes_waiting += len(frame.data)
        if self._timer is None:
            self._run()

    def stop(self) -> None:
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _run(self) -> None:
        self._timer = None
        now = self._loop.time()
        # A pair may be ahead of its rate by one burst.
        while self._waiting and self._free_at - BURST_SECONDS <= now:
            frame = self._waiting.popleft()
            self._num_bytes_waiting -= len(frame.data)
            self._free_at = max(self._free_at, now) + len(frame.data) / self._limits.relay_bytes_per_second_max
            self._deliver(frame)
        if self._waiting:
            self._timer = self._loop.call_at(self._free_at - BURST_SECONDS, self._run)
