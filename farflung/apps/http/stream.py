"""Server-sent events, and noticing that a client hung up."""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from farflung.apps.http.errors import ApiError

Result = TypeVar("Result")

HUNG_UP = 499
"""Status for the log and the metrics; nobody is there to read it."""


async def until_hang_up(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client goes away.

    Raises:
        ApiError: 499 when the client hung up.
    """
    working = asyncio.create_task(work)
    listening = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait([working, listening], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(HUNG_UP, "The client hung up.")
        return working.result()
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def events(request: Request, chunks: AsyncGenerator[dict[str, Any]]) -> Response:
    """Send `chunks` as they come. A failure before the first one has a status of its own, a later one ends the stream
    with an error event. A client that hangs up closes `chunks`."""
    first = await until_hang_up(request, anext(chunks))

    async def body() -> AsyncGenerator[str]:
        async with aclosing(chunks):
            yield _event(first)
            try:
                async for chunk in chunks:
                    yield _event(chunk)
            except ApiError as error:
                yield _event(error.body)
            yield "data: [DONE]\n\n"

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
