"""Which candidates show themselves, and after how long a silence one is taken for gone (pure).

Under load a process may stand still for longer than a silence may last. Its own pauses are not counted as silence of
others, and a sequencer that replaced another and brought the journal no further was too hasty: each such change doubles
everybody's patience, so that views do not change for ever while nothing is ordered.
"""

from collections.abc import Iterable

from farflung.systems.onebyte.config import RoundsConfig

PATIENCE_MAX = 32


class Presence:
    """As one candidate sees the others."""

    def __init__(self, config: RoundsConfig, candidates: Iterable[str], now: float) -> None:
        self._config = config
        self._heard_at = dict.fromkeys(candidates, now)
        self._beat_at = now
        self._patience = 1
        self._num_records = -1
        """At the last change of sequencers."""

    def heard(self, peer: str, now: float) -> None:
        """It is there."""
        self._heard_at[peer] = now

    def begin(self, now: float) -> None:
        """A view begins: everybody in it has time to show itself."""
        self._heard_at = dict.fromkeys(self._heard_at, now)

    def beat(self, now: float) -> None:
        """To be called in regular intervals; from one that came late this candidate learns that it stood still."""
        pause = now - self._beat_at - self._config.beat_seconds
        self._beat_at = now
        if pause > self._config.beat_seconds:
            self._heard_at = {peer: heard_at + pause for peer, heard_at in self._heard_at.items()}

    def changed(self, num_records: int) -> None:
        """Another sequencer orders, and this candidate's journal has so many records by now."""
        has_grown = num_records > self._num_records
        self._num_records = num_records
        self._patience = max(1, self._patience // 2) if has_grown else min(PATIENCE_MAX, 2 * self._patience)

    def is_absent(self, peer: str, now: float, *, others_before: int = 0) -> bool:
        """Whether it has been silent for too long; `others_before` would notice first."""
        seconds = (1 + others_before) * self._patience * self._config.absence_seconds
        return now - self._heard_at[peer] > seconds
