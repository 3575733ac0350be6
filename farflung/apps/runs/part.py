"""What an engine makes of a seat, and how a seat is sat through: the same on real machines and on virtual time."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.run import Run
from farflung.apps.runs.seats import Seat
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.nursery import open_nursery

AnyRun = TypeVar("AnyRun", bound=Run)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting(Generic[AnyRun]):
    """What a part is made from."""

    world: World
    run: AnyRun
    seat: Seat
    seats: tuple[Seat, ...]
    """All of them, so that others can be found in `peers`."""
    peers: Mapping[int, PeerId]
    """By seat: at least the servers that this seat speaks to."""
    folder: Path | None = None
    """Where the seat keeps what it knows; None: it keeps nothing (a simulation is replayed, not resumed)."""
    charter: bytes = b""
    """What the lead has told this seat alone."""


class Part(Protocol):
    """One role or loop of an engine at work."""

    async def run(self) -> None:
        """Do the part: a worker returns when the budget is used up, a server works until it is stopped."""
        ...

    def stop(self) -> None:
        """Come to an end where the run can be resumed: `run` returns soon."""
        ...

    def report(self) -> SeatReport:
        """How it fares; a loss is told once."""
        ...

    def result(self) -> Any:
        """The run's result, such as its model, as far as this part knows it; None: not at all."""
        ...

    def close(self) -> None:
        """Leave the network."""
        ...


class Stopped:
    """Whether a server's part is to end, or has failed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._error: OSError | None = None

    def set(self) -> None:
        """Let `wait` return."""
        self._event.set()

    def fail(self, error: OSError) -> None:
        """Let `wait` raise it."""
        self._error = error
        self._event.set()

    async def wait(self) -> None:
        """Until one of them.

        Raises:
            OSError: the disk does not take what must be kept.
        """
        await self._event.wait()
        if self._error is not None:
            raise self._error


async def sit(part: Part, tell: Callable[[SeatReport], object], every_seconds: float) -> None:
    """Run a part and tell its reports, the last one at its end."""

    async def tell_regularly() -> None:
        while True:
            await asyncio.sleep(every_seconds)
            tell(part.report())

    async with open_nursery() as nursery:
        telling = nursery.start(tell_regularly(), name="reports")
        await part.run()
        telling.cancel()
    tell(part.report())


def sent_bytes(world: World) -> dict[str, int]:
    """Bytes sent to each peer so far, as counted where frames meet the wire."""
    sent: dict[str, int] = {}
    for (peer, _, was_sent), num_bytes in world.traffic.num_bytes.items():
        if was_sent:
            sent[peer] = sent.get(peer, 0) + num_bytes
    return sent


def taken(decisions: deque[str]) -> tuple[str, ...]:
    """The sentences, which are gone from there."""
    sentences = tuple(decisions)
    decisions.clear()
    return sentences
