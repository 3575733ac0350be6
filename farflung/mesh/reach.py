"""How far apart nodes are: round trips and bandwidths, smoothed, ageing, published, and guessed where nobody measured.

Every node measures its own way to others and publishes the table under the topic "reach", so that a client can plan a
route between two servers that it has no part in.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from farflung.mesh.records import Record
from farflung.world.address import PeerId

TOPIC = "reach"
PEERS_PUBLISHED_MAX = 64
"""Of a larger table only the newest measurements are published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachConfig:
    """How measurements are smoothed and what is assumed without any."""

    weight_newest: float = 0.25
    """Weight of a new measurement in the moving average."""
    news_share: float = 0.1
    """Others are told anew when the average has moved by more than this share of what they know."""
    news_seconds_min: float = 0.001
    """A round trip that has moved by less is no news, however short it is."""
    age_seconds_max: float = 600.0
    """An average that was not renewed for this long is not believed any more."""
    round_trip_seconds_within: float = 0.001
    """Guess for two nodes of one site."""
    round_trip_seconds_between: float = 0.08
    """Guess for two nodes of different, or unknown, sites."""
    bytes_per_second_within: float = 100e6
    bytes_per_second_between: float = 5e6

    def __post_init__(self) -> None:
        if not 0 < self.weight_newest <= 1:
            raise ValueError("The weight of the newest measurement is over 0 and at most 1.")


class Distance(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One measured way."""

    round_trip_seconds: float | None
    bytes_per_second: float | None

    def __post_init__(self) -> None:
        for value in (self.round_trip_seconds, self.bytes_per_second):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{value} is no round trip or bandwidth")


@dataclass(slots=True)
class _Average:
    value: float
    measured_at: float
    told: float
    """What others know, or are to know now."""

    def take(self, value: float, now: float, config: ReachConfig, news_min: float) -> None:
        # An old average says nothing about a way that may have changed since.
        is_stale = now - self.measured_at > config.age_seconds_max
        self.value = value if is_stale else self.value + config.weight_newest * (value - self.value)
        self.measured_at = now
        if abs(self.value - self.told) > max(config.news_share * self.told, news_min):
            self.told = self.value


class ReachTable:
    """What this node has measured to each peer."""

    def __init__(self, config: ReachConfig | None = None) -> None:
        self._config = config or ReachConfig()
        self._round_trips: dict[PeerId, _Average] = {}
        self._rates: dict[PeerId, _Average] = {}

    def observe(
        self,
        peer: PeerId,
        now: float,
        *,
        round_trip_seconds: float | None = None,
        bytes_per_second: float | None = None,
    ) -> None:
        """Take in a measurement."""
        for averages, value, news_min in (
            (self._round_trips, round_trip_seconds, self._config.news_seconds_min),
            (self._rates, bytes_per_second, 0.0),
        ):
            if value is None:
                continue
            assert 0 <= value < math.inf, f"measured {value}"
            if peer in averages:
                averages[peer].take(value, now, self._config, news_min)
            else:
                averages[peer] = _Average(value, now, told=value)

    def distance(self, peer: PeerId, now: float) -> Distance:
        """Smoothed measurements to `peer` that are still believed."""
        found = [self._fresh(averages, peer, now) for averages in (self._round_trips, self._rates)]
        return Distance(*(average and average.value for average in found))

    def told(self, peer: PeerId, now: float) -> Distance:
        """The same as others are told, in two significant digits: noise makes no news."""
        found = [self._fresh(averages, peer, now) for averages in (self._round_trips, self._rates)]
        return Distance(*(average and float(f"{average.told:.1e}") for average in found))

    def _fresh(self, averages: Mapping[PeerId, _Average], peer: PeerId, now: float) -> _Average | None:
        average = averages.get(peer)
        return None if average is None or now - average.measured_at > self._config.age_seconds_max else average

    def forget(self, peer: PeerId) -> None:
        """The peer is gone."""
        self._round_trips.pop(peer, None)
        self._rates.pop(peer, None)

    def to_bytes(self, now: float) -> bytes:
        """The table for the record: the newest measurements, as `told`."""
        newest = sorted(self._round_trips, key=lambda peer: (-self._round_trips[peer].measured_at, peer))
        published = {
            peer: distance
            for peer in sorted(newest[:PEERS_PUBLISHED_MAX])
            if (distance := self.told(peer, now)).round_trip_seconds is not None
        }
        return msgspec.msgpack.encode(published)


def published(record: Record) -> dict[PeerId, Distance]:
    """The table in a node's record; empty if there is none or it cannot be read."""
    try:
        return msgspec.msgpack.decode(record.topics.get(TOPIC, b"\x80"), type=dict[PeerId, Distance])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}


class ReachMap:
    """Distances between any two nodes of a view, as their records tell."""

    def __init__(self, view: Mapping[PeerId, Record], config: ReachConfig | None = None) -> None:
        self._config = config or ReachConfig()
        self._sites = {peer: view[peer].site for peer in sorted(view)}
        self._tables = {peer: published(view[peer]) for peer in sorted(view)}
        round_trips: dict[tuple[str, str], list[float]] = {}
        rates: dict[tuple[str, str], list[float]] = {}
        for peer, table in self._tables.items():
            for other, distance in table.items():
                for values, value in ((round_trips, distance.round_trip_seconds), (rates, distance.bytes_per_second)):
                    if value is not None and other in self._sites:
                        values.setdefault(self._pair(peer, other), []).append(value)
        self._round_trips = {pair: statistics.median(values) for pair, values in round_trips.items()}
        self._rates = {pair: statistics.median(values) for pair, values in rates.items()}

    def _pair(self, one: PeerId, other: PeerId) -> tuple[str, str]:
        first, second = sorted((self._sites.get(one, ""), self._sites.get(other, "")))
        return first, second

    def _is_within(self, one: PeerId, other: PeerId) -> bool:
        first, second = self._pair(one, other)
        return first == second != ""

    def round_trip_seconds(self, one: PeerId, other: PeerId) -> float:
        """Measured by either; else the median between their sites; else the configured guess."""
        for source, target in ((one, other), (other, one)):
            distance = self._tables.get(source, {}).get(target)
            if distance is not None and distance.round_trip_seconds is not None:
                return distance.round_trip_seconds
        config = self._config
        is_within = self._is_within(one, other)
        guess = config.round_trip_seconds_within if is_within else config.round_trip_seconds_between
        return self._round_trips.get(self._pair(one, other), guess)

    def bytes_per_second(self, one: PeerId, other: PeerId) -> float:
        """From `one` to `other`: measured by the sender; else the median between their sites; else the guess."""
        distance = self._tables.get(one, {}).get(other)
        if distance is not None and distance.bytes_per_second is not None:
            return distance.bytes_per_second
        config = self._config
        guess = config.bytes_per_second_within if self._is_within(one, other) else config.bytes_per_second_between
        return self._rates.get(self._pair(one, other), guess)
