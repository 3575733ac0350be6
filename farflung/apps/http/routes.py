"""Which machines wrote an answer and what would make it faster, for a header and for the last chunk of a stream."""

import asyncio
from collections.abc import Callable
from typing import Any

from farflung.systems.swarm.explain import RouteReport

HEADER = "x-farflung-route"

Reporter = Callable[[], RouteReport | None]
"""The route as of now; None while there is none. May block for a moment."""


class AnswerRoute:
    """The route of one answer, once its engine has told how to look at it."""

    def __init__(self) -> None:
        self.report: Reporter = lambda: None

    async def headers(self) -> dict[str, str]:
        """In one line of ASCII."""
        report = await asyncio.to_thread(self.report)
        return {} if report is None else {HEADER: str(report)}

    async def fields(self) -> dict[str, Any]:
        """For the JSON of an answer."""
        report = await asyncio.to_thread(self.report)
        return {} if report is None else {"farflung": {"route": _spelled(report)}}


def _spelled(report: RouteReport) -> dict[str, Any]:
    hops = [
        {
            "peer": hop.peer,
            "blocks": [hop.blocks.first, hop.blocks.last],
            "compute_ms": 1000 * hop.compute_seconds,
            "queue_ms": 1000 * hop.queue_seconds,
        }
        for hop in report.hops
    ]
    times = {"way_ms": 1000 * report.way_seconds, "step_ms": 1000 * report.seconds_per_step}
    return {"hops": hops, **times, "advice": report.advice}
