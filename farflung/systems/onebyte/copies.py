"""How far another candidate's copy of the journal is, as its sequencer knows, and what it is sent next (pure)."""

from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.log import Log

WAIT_BEATS = 2
"""How long an answer is waited for at least before the same is sent again."""


class Copy:
    """One candidate's, in one epoch."""

    def __init__(self, config: RoundsConfig) -> None:
        self.num_records = 0
        """Confirmed."""
        self._config = config
        self._first: int | None = None
        """Of the piece that was sent and is not confirmed."""
        self._sent_at = 0.0
        self._is_sent_again = False
        self._wait_seconds = self._wait_seconds_min = WAIT_BEATS * config.beat_seconds
        self._end: int | None = None
        """Records there were in all when the last of them was once sent; moves on when they are confirmed."""

    @property
    def is_almost_complete(self) -> bool:
        """Whether all that there was a while ago is confirmed: it lacks what came while that travelled."""
        return self._end is not None and self.num_records >= self._end

    def confirm(self, num_records: int, now: float) -> None:
        """So many are on its disk."""
        if num_records <= self.num_records:
            return
        if self._first is not None and not self._is_sent_again:
            # A thin link is not to be filled with what is already on it.
            self._wait_seconds = max(self._wait_seconds_min, WAIT_BEATS * (now - self._sent_at))
        self.num_records = num_records

    def piece(self, log: Log, now: float) -> tuple[bytes, ...]:
        """The next records to send; none while some are under way."""
        is_same = self._first == self.num_records
        if is_same and now - self._sent_at < self._wait_seconds:
            return ()
        records = log.piece(self.num_records, len(log), self._config.catch_up_bytes)
        if not records:
            return ()
        if is_same:
            self._wait_seconds *= 2
        self._first, self._sent_at, self._is_sent_again = self.num_records, now, is_same
        if self.num_records + len(records) == len(log) and (self._end is None or self.is_almost_complete):
            self._end = len(log)
        return records
