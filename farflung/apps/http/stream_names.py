"""The names of streams and of their events, from which a lost stream can be written anew."""

import hashlib
import secrets
from dataclasses import dataclass

from farflung.apps.http.errors import ApiError

ANSWER_DIGITS, SEED_DIGITS, REQUEST_DIGITS = 24, 16, 16


@dataclass(frozen=True, slots=True)
class StreamName:
    """Which answer it is, the seed that it is drawn with, and what was asked of which weights."""

    answer: str
    """Random hexadecimal digits, which nobody guesses."""
    seed: int
    request: str
    """Digits of a hash."""

    @classmethod
    def new(cls, seed: int, request: str) -> "StreamName":
        """A name for a new answer."""
        return cls(secrets.token_hex(ANSWER_DIGITS // 2), seed, request)

    def __str__(self) -> str:
        return f"{self.answer}{self.seed:0{SEED_DIGITS}x}{self.request}"

    def event(self, number: int) -> str:
        """The id of its event `number`, counted from 1."""
        return f"{self}-{number}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client was when it lost its connection."""

    name: StreamName
    num_events: int
    """How many it has."""

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read a `Last-Event-ID`.

        Raises:
            ApiError: 400, it is none of ours.
        """
        name, _, number = text.strip().rpartition("-")
        num_digits = ANSWER_DIGITS + SEED_DIGITS + REQUEST_DIGITS
        is_name = len(name) == num_digits and set(name) <= set("0123456789abcdef")
        if not is_name or not number.isdecimal() or len(number) > 12:
            raise ApiError(
                400,
                "Last-Event-ID must be the id of the last event that you have, as it was sent.",
                param="last-event-id",
            )
        answer, rest = name[:ANSWER_DIGITS], name[ANSWER_DIGITS:]
        return cls(StreamName(answer, int(rest[:SEED_DIGITS], 16), rest[SEED_DIGITS:]), int(number))


def digest(*parts: str) -> str:
    """Digits that stand for these texts."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(hashlib.sha256(part.encode()).digest())
    return hashed.hexdigest()[:REQUEST_DIGITS]
