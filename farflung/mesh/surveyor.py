"""The role that measures how far others are: a few probes now and then, so that ways nobody uses yet are known too.

Every way that is measured is a link that stays open, so in a large swarm a node asks the same few, other ones than its
neighbours do: of every pair of sites enough ways are known, and nobody has more links for a swarm that grows.
"""

import hashlib
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from farflung.mesh.messages import REACH_ACTOR, ReachAnswer, ReachProbe
from farflung.mesh.reach import ReachTable
from farflung.mesh.records import Record
from farflung.world.address import Address, PeerId
from farflung.world.effects import Effect, Send, WakeAt
from farflung.world.role import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyorConfig:
    """How often it looks, and at how many."""

    period_seconds: float = 10.0
    probes_per_period: int = 8
    """Peers asked in one period, in turn; all are asked within ceil(peers / probes_per_period) periods."""
    num_peers_max: int = 32
    """Of more peers so many are asked at all: those whose ids, hashed with our own, come first."""
    answer_seconds_max: float = 5.0
    """Later answers say more about a queue than about a distance."""

    def __post_init__(self) -> None:
        if (
            min(self.probes_per_period, self.num_peers_max) < 1
            or not 0 < self.answer_seconds_max <= self.period_seconds
        ):
            raise ValueError("A surveyor asks at least one peer per period and waits no longer than that for answers.")


class Surveyor(Role):
    """Measures round trips to the peers of a view and publishes its table when it has changed."""

    def __init__(
        self,
        peer: PeerId,
        view: Mapping[PeerId, Record],
        publish: Callable[[bytes], None],
        *,
        bytes_per_second: Callable[[PeerId], float | None],
        is_wanted: Callable[[Record], bool] = lambda record: True,
        config: SurveyorConfig | None = None,
    ) -> None:
        """`bytes_per_second`: what the network door has seen towards a peer. `is_wanted`: which peers to ask."""
        self._peer = peer
        self._view = view
        self._publish = publish
        self._bytes_per_second = bytes_per_second
        self._is_wanted = is_wanted
        self._config = config or SurveyorConfig()
        self.table = ReachTable()
        self._number = 0
        self._asked: dict[int, tuple[PeerId, float]] = {}
        self._last: PeerId | None = None

    def start(self, now: float) -> Sequence[Effect]:
        return [WakeAt(now + min(1.0, self._config.period_seconds))]

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        match message:
            case ReachProbe(number=number):
                return [Send(source, ReachAnswer(number=number))]
            case ReachAnswer(number=number):
                asked = self._asked.pop(number, None)
                if asked is None or asked[0] != source.peer:
                    return ()
                seconds = now - asked[1]
                if seconds <= self._config.answer_seconds_max:
                    self.table.observe(source.peer, now, round_trip_seconds=seconds)
            case _:
                pass
        return ()

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        self.table.forget(peer)
        return ()

    def wake(self, now: float) -> Sequence[Effect]:
        self._asked.clear()
        self._publish(self.table.to_bytes(now))
        effects: list[Effect] = [WakeAt(now + self._config.period_seconds)]
        for peer in self._turn():
            rate = self._bytes_per_second(peer)
            if rate is not None:
                self.table.observe(peer, now, bytes_per_second=rate)
            self._number += 1
            self._asked[self._number] = (peer, now)
            effects.append(Send(Address(peer, REACH_ACTOR), ReachProbe(number=self._number)))
        return effects

    def _turn(self) -> list[PeerId]:
        """The next few peers in order of their ids, going round."""
        wanted = (peer for peer, record in self._view.items() if peer != self._peer and self._is_wanted(record))
        peers = sorted(heapq.nsmallest(self._config.num_peers_max, wanted, key=self._rank))
        later = [peer for peer in peers if self._last is None or peer > self._last]
        turn = [*later, *(peer for peer in peers if peer not in later)][: self._config.probes_per_period]
        self._last = turn[-1] if turn else None
        return turn

    def _rank(self, peer: PeerId) -> bytes:
        """An order that stays as peers come and go, and that is another one for every node."""
        return hashlib.sha256(f"{self._peer} {peer}".encode()).digest()
