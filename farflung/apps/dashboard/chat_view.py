"""A conversation as the page *Chat* shows it: what was said, by which route, how fast, and what happened on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from farflung.apps.status import SHORT_PEER
from farflung.world.address import PeerId

SILENCE_SECONDS = 1.5
"""Longer silence between two tokens is said."""


class HopView(NamedTuple):
    """One server of the chain that answers."""

    peer: PeerId
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.peer[:SHORT_PEER]} ({self.first}:{self.last})"


def moves(before: Sequence[HopView], after: Sequence[HopView]) -> list[str]:
    """What changed from one route to the next, as sentences."""
    gone = [hop for hop in before if hop not in after]
    come = [hop for hop in after if hop not in before]
    if not before or not gone:
        return []
    left = ", ".join(str(hop) for hop in gone)
    return [f"{left} is gone; {', '.join(str(hop) for hop in come) or 'nobody yet'} goes on"]


@dataclass(slots=True)
class AnswerView:
    """One answer as it comes."""

    text: str = ""
    num_tokens: int = 0
    route: tuple[HopView, ...] = ()
    incidents: list[str] = field(default_factory=list[str])
    """What happened to it on its way."""
    failure: str = ""
    is_over: bool = False
    is_stopped: bool = False
    began_at: float | None = None
    """When its first token came; monotonic seconds, like the next."""
    last_at: float | None = None

    def take(self, text: str, num_tokens: int, now: float) -> None:
        """Some more of it."""
        self.text += text
        self.num_tokens += num_tokens
        if self.last_at is not None and now - self.last_at >= SILENCE_SECONDS:
            self.incidents.append(f"{now - self.last_at:.1f} s without a token")
        self.began_at = now if self.began_at is None else self.began_at
        self.last_at = now

    def follow(self, route: Sequence[HopView]) -> None:
        """The route as of now; an empty one (the session has ended) changes nothing."""
        if not route:
            return
        self.incidents += moves(self.route, route)
        self.route = tuple(route)

    @property
    def tokens_per_second(self) -> float | None:
        """From the first token to the last."""
        if self.began_at is None or self.last_at is None or self.last_at <= self.began_at:
            return None
        return (self.num_tokens - 1) / (self.last_at - self.began_at)

    @property
    def summary(self) -> str:
        """Route, tokens and speed in one line."""
        parts = [
            " → ".join(str(hop) for hop in self.route),
            f"{self.num_tokens} tokens",
            "" if self.tokens_per_second is None else f"{self.tokens_per_second:.1f} tokens/s",
            "stopped" if self.is_stopped else "",
        ]
        return " · ".join(part for part in parts if part)


@dataclass(slots=True)
class Exchange:
    """One question and its answer."""

    question: str
    answer: AnswerView = field(default_factory=AnswerView)


def messages_of(exchanges: Sequence[Exchange]) -> list[dict[str, str]]:
    """The conversation for the chat template, up to where the model is to speak: the last answer is yet to come."""
    found: list[dict[str, str]] = []
    for index, exchange in enumerate(exchanges):
        found.append({"role": "user", "content": exchange.question})
        if index < len(exchanges) - 1:
            found.append({"role": "assistant", "content": exchange.answer.text})
    return found
