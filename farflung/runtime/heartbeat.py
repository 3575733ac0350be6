"""A link's sign of life: pings that measure the round trip, and the verdict that a peer has been silent too long.

The two sides ping in turn. A ping shows the one that hears it that the other is there, and its answer shows the same to
the one that sent it, so one ping in each period is enough for both. With many links pings are what an idle node does.
"""

import asyncio
from collections.abc import Callable

from farflung.runtime.limits import NetworkLimits

ROUND_TRIP_WEIGHT = 0.2
"""Of the newest measurement in the smoothed round-trip time."""
OWN_PAUSE_SECONDS = 1.0
"""A timer that is later than this shows that we were away, not the peer."""


class Heartbeat:
    """Pings a peer from now until `stop`; the first at once, so that a new link has a round-trip time."""

    def __init__(
        self, limits: NetworkLimits, ping: Callable[[int], None], dead: Callable[[str], None], *, is_caller: bool
    ) -> None:
        """`is_caller`: this side opened the link, and pings first in the turns of the two."""
        self._limits = limits
        self._ping = ping
        self._dead = dead
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._number = 0
        self._asked_at: dict[int, float] = {}
        self.round_trip_seconds: float | None = None
        self._next_ping_at = self._heard_at
        self._is_first_turn = is_caller
        self._due = self._heard_at
        self._timer = self._loop.call_soon(self._tick)

    def stop(self) -> None:
        """No more pings."""
        self._timer.cancel()

    def heard(self) -> None:
        """A frame came, of whatever kind."""
        self._heard_at = self._loop.time()

    def asked(self) -> None:
        """The peer's ping came: the turn after it is ours."""
        self._next_ping_at = max(self._next_ping_at, self._loop.time() + self._limits.ping_seconds)

    def answered(self, number: int) -> None:
        """The answer to ping `number` came; answers to pings never sent are passed over."""
        asked_at = self._asked_at.pop(number, None)
        if asked_at is None:
            return
        measured = self._loop.time() - asked_at
        before = self.round_trip_seconds
        self.round_trip_seconds = measured if before is None else before + ROUND_TRIP_WEIGHT * (measured - before)

    def _tick(self) -> None:
        now = self._loop.time()
        if (pause := now - self._due) > OWN_PAUSE_SECONDS:
            self._heard_at += pause
        if now - self._heard_at >= self._limits.silence_seconds_max:
            self._dead(f"no sign of life for {self._limits.silence_seconds_max:g} seconds")
            return
        if now >= self._next_ping_at:
            self._next_ping_at = now + self._limits.ping_seconds * (1 if self._is_first_turn else 2)
            self._is_first_turn = False
            self._asked_at[self._number] = now
            self._ping(self._number)
            self._number += 1
        self._due = min(self._next_ping_at, self._heard_at + self._limits.silence_seconds_max)
        self._timer = self._loop.call_at(self._due, self._tick)
