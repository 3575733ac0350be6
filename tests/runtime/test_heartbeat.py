"""The sign of life of a link, on virtual time: who pings when, and how soon silence is noticed."""

import asyncio
import itertools
from dataclasses import dataclass, field

import pytest

from farflung.runtime.heartbeat import Heartbeat
from farflung.runtime.limits import NetworkLimits
from farflung.sim import Simulation

LIMITS = NetworkLimits()


@dataclass
class Side:
    """One end of a link."""

    pinged_at: list[float] = field(default_factory=list[float])
    heard_at: list[float] = field(default_factory=list[float])
    lost_at: float | None = None


class Pair:
    """Two heartbeats whose frames travel for `one_way_seconds`."""

    def __init__(self, one_way_seconds: float) -> None:
        self._one_way_seconds = one_way_seconds
        self.sides = (Side(), Side())
        self.is_frozen = False
        """The second side: it says nothing."""
        self.beats = [self._beat(0), self._beat(1)]

    def _beat(self, side: int) -> Heartbeat:
        def lost(reason: str) -> None:
            self.sides[side].lost_at = asyncio.get_running_loop().time()

        return Heartbeat(LIMITS, lambda number: self._ping(side, number), lost, is_caller=side == 0)

    def _ping(self, side: int, number: int) -> None:
        self.sides[side].pinged_at.append(asyncio.get_running_loop().time())
        self._send(side, lambda: self._pinged(1 - side, number))

    def _pinged(self, side: int, number: int) -> None:
        self.beats[side].asked()
        self._send(side, lambda: self.beats[1 - side].answered(number))

    def _send(self, side: int, arrive: object) -> None:
        if not (side and self.is_frozen):
            asyncio.get_running_loop().call_later(self._one_way_seconds, self._arrive, 1 - side, arrive)

    def _arrive(self, side: int, arrive: object) -> None:
        self.sides[side].heard_at.append(asyncio.get_running_loop().time())
        self.beats[side].heard()
        assert callable(arrive)
        arrive()


@pytest.mark.parametrize("one_way_seconds", [0.0001, 0.15, 0.7])
def test_the_sides_ping_in_turn_and_each_hears_of_the_other_in_every_period(one_way_seconds: float) -> None:
    async def run() -> Pair:
        pair = Pair(one_way_seconds)
        await asyncio.sleep(100.0)
        return pair

    with Simulation() as simulation:
        pair = simulation.run(run())
        for side, beat in zip(pair.sides, pair.beats, strict=True):
            assert beat.round_trip_seconds == pytest.approx(2 * one_way_seconds)
            assert side.lost_at is None
            assert len(side.pinged_at) <= 1 + 100.0 / (2 * LIMITS.ping_seconds) + 1
            pauses = [after - before for before, after in itertools.pairwise(side.heard_at)]
            assert max(pauses) <= LIMITS.ping_seconds + 2 * one_way_seconds + 0.001
        first, second = pair.sides
        later = sorted([(time, 0) for time in first.pinged_at[1:]] + [(time, 1) for time in second.pinged_at[1:]])
        assert all(before[1] != after[1] for before, after in itertools.pairwise(later)), "not in turn"


@pytest.mark.parametrize("frozen_at", [1.0, 9.9, 10.1, 11.3, 12.5])
def test_a_side_that_says_nothing_is_lost_within_the_silence_that_is_allowed(frozen_at: float) -> None:
    async def run() -> Side:
        pair = Pair(0.05)
        await asyncio.sleep(frozen_at)
        pair.is_frozen = True
        await asyncio.sleep(LIMITS.silence_seconds_max + 0.2)
        return pair.sides[0]

    with Simulation() as simulation:
        side = simulation.run(run())
        assert side.lost_at is not None
        assert side.lost_at == pytest.approx(side.heard_at[-1] + LIMITS.silence_seconds_max)
