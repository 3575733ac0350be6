"""A miniature of serving: users of the plan's goal, all of them here, ask the servers that there are for a while."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from farflung.apps.pilot.comparison import Comparison, Row, mean
from farflung.apps.pilot.standing import HERE, TOKENS_TOGETHER
from farflung.apps.pilot.survey import Target, hidden_states, view_of
from farflung.apps.plan.goals import ServeGoal
from farflung.apps.plan.serving_run import Served
from farflung.apps.plan.user import User, together
from farflung.apps.plan.words import Sentence, said
from farflung.apps.wiring import Connection
from farflung.systems.swarm import messages
from farflung.systems.swarm.config import SessionConfig
from farflung.systems.swarm.session import Session
from farflung.systems.swarm.view import SwarmView
from farflung.wire.message import kinds_of
from farflung.world.doors import TrafficMeter

SETTLE_SECONDS = 1.0
"""Until late answers have come, before bytes are counted."""
KINDS = kinds_of(messages)
"""Of messages that serve; the directory, pings and probes are nobody's tokens."""


@dataclass(frozen=True, slots=True)
class Crossed:
    """Bytes between here and all servers."""

    sent: float
    received: float

    def __sub__(self, other: "Crossed") -> "Crossed":
        return Crossed(self.sent - other.sent, self.received - other.received)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens that all users drew at the same time."""

    num_tokens: int
    """Of each user."""
    tokens_per_second: tuple[float, ...]
    crossed: Crossed


@dataclass(slots=True)
class Asked:
    """What was measured so far."""

    prompts: list[tuple[float, Crossed]] = field(default_factory=list[tuple[float, Crossed]])
    """Seconds to the first token of one user alone, and bytes of its prompt."""
    drawn: list[Drawn] = field(default_factory=list[Drawn])


class Miniature:
    """Again and again: a prompt, the other users join in, and all draw an answer."""

    def __init__(self, connection: Connection, target: Target, goal: ServeGoal) -> None:
        self._connection = connection
        self._target = target
        self._goal = goal
        self._clock = connection.node.world.clock
        self.asked = Asked()

    async def run(self, seconds: float, advance: Callable[[float], object]) -> None:
        """For so long, and to the first tokens at least; `advance` hears of seconds gone by.

        Raises:
            FarflungError: the swarm cannot be reached, or refuses.
        """
        began_at = told_at = self._clock.now()

        def tell() -> bool:
            nonlocal told_at
            now = self._clock.now()
            advance(now - told_at)
            told_at = now
            return now < began_at + seconds

        view = view_of(self._connection, self._target)
        while tell() or not self.asked.drawn:
            sessions = [self._session(view) for _ in range(self._goal.users)]
            try:
                await self._ask([self._user(session) for session in sessions], tell)
            finally:
                for session in sessions:
                    session.close()

    def _session(self, view: SwarmView) -> Session:
        num_tokens = self._goal.prompt_tokens + self._goal.answer_tokens
        return Session(self._connection.node.world, view, SessionConfig(), num_tokens_max=num_tokens)

    def _user(self, session: Session) -> User:
        return User(self._clock, session, hidden_states(self._target.hidden_size), self._goal.client_ms)

    async def _ask(self, users: list[User], goes_on: Callable[[], bool]) -> None:
        before = self._crossed()
        seconds = await users[0].prompt(self._goal.prompt_tokens)
        await asyncio.sleep(SETTLE_SECONDS)
        self.asked.prompts.append((seconds, self._crossed() - before))
        await together([partial(user.prompt, 1) for user in users[1:]])
        num_left = self._goal.answer_tokens
        while num_left and (goes_on() or not self.asked.drawn):
            await asyncio.sleep(SETTLE_SECONDS)
            num_tokens = min(TOKENS_TOGETHER, num_left)
            before = self._crossed()
            rates = await together([partial(user.answer, num_tokens) for user in users])
            await asyncio.sleep(SETTLE_SECONDS)
            self.asked.drawn.append(Drawn(num_tokens, tuple(rates), self._crossed() - before))
            num_left -= num_tokens

    def _crossed(self) -> Crossed:
        return crossed(self._connection.node.world.traffic)


def crossed(traffic: TrafficMeter) -> Crossed:
    """What serving has sent and received so far."""
    totals = {True: 0, False: 0}
    for (_, kind, was_sent), num_bytes in traffic.num_bytes.items():
        if kind in KINDS:
            totals[was_sent] += num_bytes
    return Crossed(totals[True], totals[False])


def compared(
    served: Served, asked: Asked, goal: ServeGoal, seconds: float, remarks: tuple[Sentence, ...], *, is_whole: bool
) -> Comparison:
    """Prediction and measurement of the same figures."""
    rows: list[Row] = []
    if asked.prompts:
        prompt = _between(served.first_prompt_bytes)
        first = mean([one for one, _ in asked.prompts])
        rows.append(Row(said("row first token"), "s", served.first_token_seconds, first))
        rows.append(Row(said("row prompt sent"), "B", prompt.sent, mean([one.sent for _, one in asked.prompts])))
    if asked.drawn:
        token = _between(served.token_bytes)
        num_tokens = sum(one.num_tokens for one in asked.drawn)
        sent = sum(one.crossed.sent for one in asked.drawn) / num_tokens
        received = sum(one.crossed.received for one in asked.drawn) / num_tokens
        rates = [
            num_tokens / sum(one.num_tokens / one.tokens_per_second[user] for one in asked.drawn)
            for user in range(goal.users)
        ]
        rows.append(Row(said("row slowest"), "tokens/s", min(served.tokens_per_second), min(rates)))
        rows.append(Row(said("row token sent"), "B", token.sent, sent))
        rows.append(Row(said("row token received"), "B", token.received, received))
    return Comparison(
        method=said("as it stands"), seconds=seconds, rows=tuple(rows), remarks=remarks, is_whole=is_whole
    )


def _between(sent: Mapping[tuple[str, str], float]) -> Crossed:
    """What crosses between the pilot's site and others."""
    up = sum(num_bytes for (one, other), num_bytes in sent.items() if one == HERE != other)
    down = sum(num_bytes for (one, other), num_bytes in sent.items() if other == HERE != one)
    return Crossed(up, down)
