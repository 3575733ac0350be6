"""How long the device waits for sessions that are about to be back with their next step (pure).

A batch takes hardly longer with a few sessions more, so whoever comes right after one has begun waits for nearly two.
And sessions that were computed together come back one shortly after the other, wherever they have been in between:
were a batch begun with the first of them, it would fall apart on its way through a chain, until each session is
computed alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

from farflung.model.depth import ForwardSeconds

SMOOTHING = 0.25
NUM_DEVIATIONS = 2.0
OUTLIER = 3.0
"""What takes so many times longer than usual is a pause and counts as that: it is soon forgotten."""
FIRST_SECONDS_MAX = 0.2
"""A longer one at first counts as that."""
SECONDS_MIN = 0.001
"""Nothing is more certain than so, nor compared with less."""
RETURN_SHARE = 0.25
"""Of a batch's time, in which a session of which nothing is known is expected back."""
UNCERTAIN_SHARE_MAX = 0.5
"""Of a batch's time, which may be waited in vain in any case."""


@dataclass(slots=True)
class Habit:
    """How long something usually takes, estimated as TCP does round trips (Jacobson, SIGCOMM 1988)."""

    mean_seconds: float | None = None
    deviation_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """It took so long this time."""
        if self.mean_seconds is None:
            self.mean_seconds = min(seconds, FIRST_SECONDS_MAX)
            self.deviation_seconds = self.mean_seconds / 2
            return
        error = min(seconds, OUTLIER * max(self.mean_seconds, SECONDS_MIN)) - self.mean_seconds
        self.mean_seconds += SMOOTHING * error
        self.deviation_seconds += SMOOTHING * (abs(error) - self.deviation_seconds)

    def latest_seconds(self, uncertain_seconds_max: float) -> float | None:
        """It rarely takes longer; None if nothing is known, or so little that one may wait longer in vain than that."""
        uncertain_seconds = NUM_DEVIATIONS * self.deviation_seconds
        if self.mean_seconds is None or uncertain_seconds > uncertain_seconds_max:
            return None
        return self.mean_seconds + max(uncertain_seconds, SECONDS_MIN)


@dataclass(slots=True, eq=False)
class Companions:
    """Sessions that were computed together, as long as they are away. Who has left is not held: pages go with it."""

    away: WeakKeyDictionary["Absent", None]
    first_back_at: float | None = None


@dataclass(slots=True, eq=False)
class Returns:
    """What is known of a session's returns."""

    absence: Habit = field(default_factory=Habit)
    """From an output to its next step."""
    lag: Habit = field(default_factory=Habit)
    """Behind the first one back of its companions."""
    answered_at: float | None = None
    """When its newest output was sent; None while a step waits or runs."""
    companions: Companions | None = None


class Absent(Protocol):
    """A session, as far as this module cares."""

    @property
    def returns(self) -> Returns: ...

    @property
    def is_closed(self) -> bool: ...


class Lingering:
    """Who is expected back at one device, and when."""

    def __init__(self, uncertain_seconds_max: float) -> None:
        """`uncertain_seconds_max`: a session of which it is less certain when it comes is not waited for, if that is
        much beside the time of a batch; 0: nobody ever is."""
        self._uncertain_seconds_max = uncertain_seconds_max
        self._newest_seconds = 0.0
        self._decode_seconds = ForwardSeconds()
        self._expected = WeakKeyDictionary[Absent, float]()

    def took(self, num_sessions: int, seconds: float, *, is_decoding: bool) -> None:
        """A batch of so many sessions took so long; whether each of them did but decode."""
        self._newest_seconds = seconds
        if is_decoding:
            self._decode_seconds.add(num_sessions, seconds)

    def _batch_seconds(self, num_sessions: int) -> float:
        return self._decode_seconds.of(num_sessions) or self._newest_seconds

    def answered(self, sessions: Sequence[Absent], now: float) -> None:
        """These were computed together and have their outputs now."""
        companions = Companions(WeakKeyDictionary(dict.fromkeys(sessions)))
        for session in sessions:
            session.returns.answered_at, session.returns.companions = now, companions
            self._expect(session, now, session.returns.absence)

    def came(self, session: Absent, now: float) -> None:
        """Its next step is here."""
        self._expected.pop(session, None)
        returns = session.returns
        if returns.answered_at is not None:
            returns.absence.add(now - returns.answered_at)
        companions, returns.answered_at, returns.companions = returns.companions, None, None
        if companions is None:
            return
        companions.away.pop(session, None)
        if companions.first_back_at is not None:
            returns.lag.add(now - companions.first_back_at)
            return
        companions.first_back_at = now
        for other in companions.away:
            self._expect(other, now, other.returns.lag)

    def _expect(self, session: Absent, since: float, habit: Habit) -> None:
        if not self._uncertain_seconds_max:
            return
        latest_seconds = habit.latest_seconds(
            max(self._uncertain_seconds_max, UNCERTAIN_SHARE_MAX * self._newest_seconds)
        )
        if habit.mean_seconds is None:
            latest_seconds = max(RETURN_SHARE * self._newest_seconds, SECONDS_MIN)
        if latest_seconds is not None:
            self._expected[session] = since + latest_seconds

    def all_back_at(self, now: float) -> float:
        """When nobody is expected any more."""
        return max(self._expected.values(), default=now)

    def begins_at(self, now: float, num_waiting: int, num_places: int) -> float:
        """When the next batch is best begun: now, or as soon as somebody is back who is about to be."""
        for session in [each for each, moment in self._expected.items() if moment <= now or each.is_closed]:
            del self._expected[session]
        if num_places < 1 or not self._expected:
            return now
        return compute_at(now, num_waiting, sorted(self._expected.values())[:num_places], self._batch_seconds)


def compute_at(
    now: float, num_waiting: int, returns_at: Iterable[float], batch_seconds: Callable[[int], float]
) -> float:
    """The moment to begin a batch, so that most sessions are served per second: `num_waiting` could be computed now,
    others are expected at `returns_at`, and so many together take `batch_seconds`."""
    best_at, best_rate = now, num_waiting / max(batch_seconds(num_waiting), 1e-9)
    for number, moment in enumerate(sorted(moment for moment in returns_at if moment > now), num_waiting + 1):
        rate = number / (moment - now + batch_seconds(number))
        if rate > best_rate:
            best_at, best_rate = moment, rate
    return best_at
