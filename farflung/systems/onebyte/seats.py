"""Who measures at present, as the sequencer knows them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from farflung.systems.onebyte.slots import Patience
from farflung.world.address import Address

SPEED_WEIGHT = 0.5
"""Of the newest observation of a measurer's speed."""
REISSUE_FACTOR = 2.0
"""Of the time that a measurer should need for what it holds: then others are asked for it."""


@dataclass(slots=True, kw_only=True)
class Seat:
    """One measurer's present life."""

    address: Address
    public_key: bytes
    name: str
    instance: str
    num_records: int = 0
    """Of the journal, that it is known to have or was just sent."""
    is_current: bool = False
    """It has everything that counts, and can be given slots."""
    speed: float = 0.0
    """Entries per second; 0: not known."""
    given_at: float = 0.0
    num_given: int = 0
    """Slots of the open round that it was given first, and when: its speed is seen when they are all there."""

    def finished(self, now: float) -> None:
        """All that it was given is here."""
        if self.num_given and now > self.given_at:
            seen = self.num_given / (now - self.given_at)
            self.speed = seen if not self.speed else self.speed + SPEED_WEIGHT * (seen - self.speed)
        self.num_given = 0


@dataclass(slots=True)
class Seats:
    """All of them by key, in order of joining."""

    _seats: dict[str, Seat] = field(default_factory=dict[str, Seat])

    def __iter__(self) -> Iterator[tuple[str, Seat]]:
        return iter(list(self._seats.items()))

    def __contains__(self, key: str) -> bool:
        return key in self._seats

    def put(self, key: str, seat: Seat) -> None:
        """A new life takes the place of an earlier one, and what was seen of its speed."""
        before = self._seats.pop(key, None)
        seat.speed = before.speed if before is not None else 0.0
        self._seats[key] = seat

    def remove(self, key: str) -> None:
        """It is gone."""
        self._seats.pop(key, None)

    def get(self, key: str) -> Seat | None:
        """By the key of its participant, in hexadecimal."""
        return self._seats.get(key)

    def at(self, address: Address) -> tuple[str, Seat] | None:
        """By where it writes from."""
        return next(((key, seat) for key, seat in self._seats.items() if seat.address == address), None)

    def patience(self, least_seconds: float) -> Patience:
        """With one whose speed is known as long as it may well need: otherwise slow shares would be measured twice."""

        def seconds(key: str, num_slots: int) -> float:
            speed = self._seats[key].speed if key in self._seats else 0.0
            return max(least_seconds, REISSUE_FACTOR * num_slots / speed) if speed else least_seconds

        return seconds

    def current(self) -> dict[str, Seat]:
        """Those that can be given slots."""
        return {key: seat for key, seat in self._seats.items() if seat.is_current}
