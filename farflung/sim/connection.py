"""One connection between two processes: first-in-first-out lanes, how it breaks, and who hears of it when.

send -> lane queue -> shared bandwidth -> latency (+ jitter) -> loss? duplicate? -> delivery in order of sending
                                                                    |
a process that dies closes its end: a last frame goes out behind what it sent; a frame that meets a closed end
is answered by a reset; silence (frozen, cut off, power gone) breaks both ends after SILENCE_SECONDS_MAX.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from farflung.sim.bandwidth import SharedBandwidth
from farflung.sim.loop import Outside
from farflung.sim.station import Station
from farflung.sim.topology import Link, Way

SILENCE_SECONDS_MAX = 7.0
"""A peer that has not been heard of for this long is lost, as the heartbeats of real machines decide."""

URGENT_BYTES_MAX = 1 << 20
"""Larger messages travel on the bulk lane."""

KERNEL_BYTES_MAX = 256 * 1024
"""So much of the urgent lane is with the kernel as soon as it is sent, and still goes out when its process dies."""

RATE_BYTES_MIN = 64 * 1024
"""Smaller messages say nothing about a link's bandwidth."""

RATE_WEIGHT = 0.3
"""Weight of the newest message in the smoothed bandwidth."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes under way, and what to do when they arrive (once per copy) or vanish."""

    num_bytes: int
    arrived: Callable[[], None]
    vanished: Callable[[], None]
    is_control: bool = False
    """Ends and resets: of no size, never lost by chance."""


@dataclass(slots=True)
class Lane:
    """One direction, one urgency: frames leave one after another and arrive in that order."""

    way: Way
    waiting: deque[Frame] = field(default_factory=deque[Frame])
    is_sending: bool = False
    transfer: int | None = None
    transfer_started: float = 0.0
    bytes_per_second: float | None = None
    """Smoothed over the large messages so far."""
    last_arrival: float = 0.0


class Chance:
    """Loss, duplication and jitter: those of the link, and what faults add to every link."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.loss = 0.0
        self.duplication = 0.0

    def is_lost(self, links: tuple[Link, ...]) -> bool:
        return self._happens(self.loss, [link.loss for link in links])

    def is_duplicated(self, links: tuple[Link, ...]) -> bool:
        return self._happens(self.duplication, [link.duplication for link in links])

    def jitter_seconds(self, links: tuple[Link, ...]) -> float:
        return sum(self._random.uniform(0, link.jitter_seconds) for link in links if link.jitter_seconds)

    def _happens(self, extra: float, probabilities: list[float]) -> bool:
        return any(self._random.random() < probability for probability in [extra, *probabilities] if probability)


class Connection:
    """Both directions between two stations; `relay` is the station between them, if any."""

    def __init__(
        self,
        loop: Outside,
        bandwidth: SharedBandwidth,
        chance: Chance,
        ends: tuple[Station, Station],
        ways: tuple[Way, Way],
        relay: Station | None,
    ) -> None:
        self._loop = loop
        self._bandwidth = bandwidth
        self._chance = chance
        self.ends = ends
        self.relay = relay
        self.is_open = [True, True]
        """Whether each end still believes in the connection."""
        self._ways = ways
        # [direction][0: urgent, 1: bulk]; direction 0 is from ends[0] to ends[1].
        self._lanes = [[Lane(way), Lane(way)] for way in ways]
        self._epoch = 0
        self.silence: asyncio.TimerHandle | None = None

    def side(self, station: Station) -> int:
        """0 or 1: which end `station` is."""
        return self.ends.index(station)

    @property
    def round_trip_seconds(self) -> float:
        """Both latencies, without queueing."""
        return self._ways[0].latency_seconds + self._ways[1].latency_seconds

    def transmit(self, side: int, frame: Frame) -> None:
        """Send from that end."""
        lane = self._lanes[side][frame.num_bytes > URGENT_BYTES_MAX]
        lane.waiting.append(frame)
        if not lane.is_sending:
            self._next(lane)

    def transmit_control(self, side: int, arrived: Callable[[], None]) -> None:
        """Send an end or a reset from that end, behind its urgent frames."""
        self.transmit(side, Frame(0, arrived, lambda: None, is_control=True))

    def bytes_per_second(self, side: int) -> float | None:
        """Bandwidth seen by large messages from that end, if there were any on a way of finite bandwidth."""
        urgent, bulk = self._lanes[side]
        return urgent.bytes_per_second if bulk.bytes_per_second is None else bulk.bytes_per_second

    def drop_unsent(self, side: int, *, has_power: bool) -> None:
        """The process at that end died: what its kernel had not taken is gone; without power, all that had not left."""
        urgent, bulk = self._lanes[side]
        self._clear(bulk)
        num_kept = 0
        if has_power:
            sizes = itertools.accumulate(frame.num_bytes for frame in urgent.waiting)
            num_kept = sum(1 for num_bytes in sizes if num_bytes <= KERNEL_BYTES_MAX)
        self._clear(urgent, num_kept=num_kept)

    def drop_all(self) -> None:
        """The way is cut: whatever is on it is lost."""
        self._epoch += 1
        for lanes in self._lanes:
            for lane in lanes:
                self._clear(lane)

    def _clear(self, lane: Lane, *, num_kept: int = 0) -> None:
        # While a transfer is under way its frame is still the first of the queue.
        if lane.transfer is not None and not num_kept:
            self._bandwidth.stop(lane.transfer)
            lane.is_sending, lane.transfer = False, None
        dropped = [lane.waiting.pop() for _ in range(len(lane.waiting) - num_kept)]
        for frame in reversed(dropped):
            frame.vanished()

    def _next(self, lane: Lane) -> None:
        lane.is_sending = bool(lane.waiting)
        if not lane.waiting:
            return
        frame = lane.waiting[0]
        if lane.way.pipes and frame.num_bytes:
            lane.transfer_started = self._loop.time()
            lane.transfer = self._bandwidth.start(lane.way.pipes, frame.num_bytes, lambda: self._left(lane))
        else:
            self._left(lane)

    def _left(self, lane: Lane) -> None:
        """The first frame's last byte has left: it is in the air, the next may start."""
        frame = lane.waiting.popleft()
        if lane.transfer is not None and frame.num_bytes >= RATE_BYTES_MIN:
            rate = frame.num_bytes / (self._loop.time() - lane.transfer_started)
            before = rate if lane.bytes_per_second is None else lane.bytes_per_second
            lane.bytes_per_second = before + RATE_WEIGHT * (rate - before)
        lane.transfer = None
        links = lane.way.links
        delay = lane.way.latency_seconds + self._chance.jitter_seconds(links)
        lane.last_arrival = max(lane.last_arrival, self._loop.time() + delay)
        if not frame.is_control and self._chance.is_lost(links):
            frame.vanished()
        else:
            copies = 2 if not frame.is_control and self._chance.is_duplicated(links) else 1
            for _ in range(copies):
                self._loop.call_at(lane.last_arrival, self._arrive, self._epoch, frame)
        self._next(lane)

    def _arrive(self, epoch: int, frame: Frame) -> None:
        if epoch == self._epoch:
            frame.arrived()
        else:
            frame.vanished()
