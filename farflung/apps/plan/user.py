"""One user of a plan: asks with a prompt and draws tokens, and takes the time; on virtual time and for real alike."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import torch

from farflung.systems.swarm.session import Session
from farflung.world.doors import Clock
from farflung.world.nursery import open_nursery

MakeHidden = Callable[[int], torch.Tensor]
"""Hidden states of so many positions, [1, positions, hidden size]."""


class User:
    """What its own machine computes (embeddings, head, the choice of a token) is a wait of so many milliseconds."""

    def __init__(self, clock: Clock, session: Session, make_hidden: MakeHidden, client_ms: float) -> None:
        self._clock = clock
        self.session = session
        self._make_hidden = make_hidden
        self._client_seconds = client_ms / 1000

    async def prompt(self, num_tokens: int) -> float:
        """Seconds until the first token."""
        began_at = self._clock.now()
        await self._step(num_tokens)
        return self._clock.now() - began_at

    async def answer(self, num_tokens: int) -> float:
        """Tokens per second of so many more."""
        began_at = self._clock.now()
        for _ in range(num_tokens):
            await self._step(1)
        return num_tokens / (self._clock.now() - began_at)

    async def _step(self, num_positions: int) -> None:
        await self.session.step(self._make_hidden(num_positions))
        await asyncio.sleep(self._client_seconds)


async def together(works: Sequence[Callable[[], Coroutine[Any, Any, float]]]) -> list[float]:
    """What each comes to, all at the same time."""
    async with open_nursery() as nursery:
        tasks = [nursery.start(work(), name=f"user {number}") for number, work in enumerate(works)]
    return [task.result() for task in tasks]
