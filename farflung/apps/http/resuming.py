"""Streams that outlive their connection (`Last-Event-ID`).

    written and heard --hang-up--> written, unheard --resume_seconds--> at rest --kept_seconds--> forgotten
            ^                             |                                 |
            +------- a client comes back -+---------------------------------+

An answer is decided by its request and its seed. So one that rests is written anew and passed over up to the event that
the client has; and so is one that was forgotten, or lost with its process, for a client that sends its request again:
the seed is part of the stream's name.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from farflung.apps.http.errors import ApiError
from farflung.apps.http.guards import CALLER
from farflung.apps.http.hanging_up import until_hang_up
from farflung.apps.http.schema import AnswerRequest
from farflung.apps.http.stream_names import Place, StreamName, digest
from farflung.apps.http.streams import Json, Stream

Headers = Callable[[], Awaitable[Mapping[str, str]]]
"""More headers, once the first event is there."""

SEED_BITS = 63
RESUME_SECONDS_MAX = 86_400
LISTEN_SECONDS = 10.0
"""From an answer's headers to its body, if nobody hangs up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """What is done for clients that may come back."""

    resume_seconds: float = 30.0
    """How long an answer goes on without a listener; 0: it ends with its connection, and events have no ids."""
    kept_seconds: float = 300.0
    """How long the events of a stream without a listener are kept."""
    num_streams_max: int = 1000
    num_bytes_max: int = 256 << 20
    """Of the events of all streams; those longest without a listener are forgotten first."""

    def __post_init__(self) -> None:
        if not 0 <= self.resume_seconds <= RESUME_SECONDS_MAX:
            raise ValueError(f"--resume-seconds must be between 0 and {RESUME_SECONDS_MAX}")


class Streams:
    """All streams of one interface."""

    def __init__(self, limits: StreamLimits | None = None) -> None:
        self._limits = limits or StreamLimits()
        self._streams: dict[str, Stream] = {}
        """By name; those longest without a listener first."""
        self._timers: dict[str, list[asyncio.TimerHandle]] = {}

    def place_of(self, request: Request, asked: AnswerRequest, weights: str) -> Place:
        """Where the answer to a request begins for this client: anew, or after its `Last-Event-ID`. Sets the seed.

        Raises:
            ApiError: 400 or 404 for an event that is none of this request.
        """
        given = request.headers.get("last-event-id") if asked.stream else None
        place = Place.parse(given) if given else None
        if asked.seed is None:
            asked.seed = secrets.randbits(SEED_BITS) if place is None else place.name.seed
        asked.seed &= (1 << SEED_BITS) - 1
        requested = digest(asked.model_dump_json(), weights)
        if place is None:
            return Place(StreamName.new(asked.seed, requested), 0)
        if (place.name.seed, place.name.request) != (asked.seed, requested):
            raise ApiError(
                404,
                "The Last-Event-ID is of another request, or the model has other weights by now: send the request as "
                "it was, or without Last-Event-ID to begin anew.",
                param="last-event-id",
                code="stream_not_found",
            )
        return place

    async def answer(
        self,
        request: Request,
        place: Place,
        model: str,
        write: Callable[[], AsyncGenerator[Json]],
        headers: Headers,
    ) -> Response:
        """The events after `place` of the answer that `write` writes. A failure before the first has a status of its
        own, a later one ends the stream with an error event."""
        stream = self._find(request, str(place.name))
        if stream is None or stream.num_dropped > place.num_events:
            stream = Stream(place.name, write, self._limits.resume_seconds > 0, _owner(request), model)
        return await self._respond(request, stream, place.num_events, headers)

    async def resume(self, request: Request, name: str) -> Response:
        """The events of a kept stream after the request's `Last-Event-ID`, or all of them.

        Raises:
            ApiError: 404 for a stream that is not there (any more).
        """
        given = request.headers.get("last-event-id")
        place = Place.parse(given) if given else None
        stream = self._kept(request, name)
        if place is not None and str(place.name) != name:
            raise ApiError(400, "The Last-Event-ID is of another stream.", param="last-event-id")
        num_events = 0 if place is None else place.num_events
        if stream.num_dropped > num_events:
            raise _not_found(f"The first {stream.num_dropped} events of this stream are not kept any more")
        return await self._respond(request, stream, num_events, _no_headers)

    def end(self, request: Request, name: str) -> None:
        """End an answer at once and forget its events.

        Raises:
            ApiError: 404 for a stream that is not there (any more).
        """
        self._forget(self._kept(request, name))

    def spare(self, model: str) -> bool:
        """Let the answer of `model` that is longest without a listener rest; whether there was one."""
        for stream in self._streams.values():
            if stream.model == model and stream.is_writing and not stream.is_heard:
                stream.rest()
                return True
        return False

    def close(self) -> None:
        """Forget all."""
        for stream in list(self._streams.values()):
            self._forget(stream)

    def _kept(self, request: Request, name: str) -> Stream:
        stream = self._find(request, name)
        if stream is None:
            raise _not_found("There is no such stream here, or not any more")
        return stream

    def _find(self, request: Request, name: str) -> Stream | None:
        stream = self._streams.get(name)
        if stream is not None and stream.owner != _owner(request):
            raise _not_found("There is no such stream of this API key here")
        return stream

    async def _respond(self, request: Request, stream: Stream, num_events: int, headers: Headers) -> StreamingResponse:
        if not stream.is_writing and not stream.is_complete:
            others = stream.write()
            first = await until_hang_up(request, anext(others))
            if stream.is_writing:  # another client has come back to it meanwhile
                await others.aclose()
            else:
                stream.go_on(first, others)
        self._keep(stream)
        more = {"x-farflung-stream": str(stream.name)} if stream.is_kept else {}
        every = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            self._heard(stream, num_events),
            media_type="text/event-stream",
            headers=every | more | dict(await headers()),
        )

    async def _heard(self, stream: Stream, num_events: int) -> AsyncGenerator[bytes]:
        self._stop_timers(stream)
        try:
            async with aclosing(stream.events(num_events)) as events:
                async for event in events:
                    yield event
        finally:
            if not stream.is_heard:
                self._left(stream)

    def _left(self, stream: Stream) -> None:
        """Nobody listens to it any more."""
        if self._streams.get(str(stream.name)) is not stream or self._limits.resume_seconds <= 0:
            self._forget(stream)
        else:
            self._streams[str(stream.name)] = self._streams.pop(str(stream.name))
            self._start_timers(stream, self._limits.resume_seconds)

    def _keep(self, stream: Stream) -> None:
        name = str(stream.name)
        other = self._streams.pop(name, None)
        if other is not None and other is not stream and not other.is_heard:
            other.rest()
        self._streams[name] = stream
        self._stay_small(stream)
        if not stream.is_heard:
            self._start_timers(stream, max(self._limits.resume_seconds, LISTEN_SECONDS))

    def _stay_small(self, newest: Stream) -> None:
        num_bytes = sum(stream.num_bytes for stream in self._streams.values())
        for stream in list(self._streams.values()):
            if num_bytes <= self._limits.num_bytes_max and len(self._streams) <= self._limits.num_streams_max:
                return
            if stream.is_heard:
                num_bytes -= stream.drop_heard()
            elif stream is not newest:
                num_bytes -= stream.num_bytes
                self._forget(stream)

    def _start_timers(self, stream: Stream, resume_seconds: float) -> None:
        self._stop_timers(stream)
        loop = asyncio.get_running_loop()
        self._timers[str(stream.name)] = [
            loop.call_later(resume_seconds, stream.rest),
            loop.call_later(max(self._limits.kept_seconds, resume_seconds), self._forget, stream),
        ]

    def _forget(self, stream: Stream) -> None:
        stream.rest()
        self._stop_timers(stream)
        if self._streams.get(str(stream.name)) is stream:
            del self._streams[str(stream.name)]

    def _stop_timers(self, stream: Stream) -> None:
        for timer in self._timers.pop(str(stream.name), []):
            timer.cancel()


async def _no_headers() -> Mapping[str, str]:
    return {}


def _not_found(what: str) -> ApiError:
    sentence = f"{what}: send the request itself again, with Last-Event-ID to go on where you were."
    return ApiError(404, sentence, code="stream_not_found")


def _owner(request: Request) -> int | None:
    return request.scope.get(CALLER)
