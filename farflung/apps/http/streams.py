"""One answer as server-sent events that are kept, so that a client that comes back gets what it missed."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from farflung.apps.http.errors import ApiError
from farflung.apps.http.stream_names import StreamName

Json = dict[str, Any]
DONE = "[DONE]"


class _Listener:
    """Somebody who reads a stream."""

    def __init__(self, num_events: int) -> None:
        self.num_events = num_events
        """How many it has."""


@dataclass(slots=True, eq=False)
class Stream:
    """Events, written by a task and read by any number of listeners."""

    name: StreamName
    write: Callable[[], AsyncGenerator[Json]]
    """Begins the answer; it has the same events each time."""
    is_kept: bool = True
    """Whether its events have ids, by which a client may come back."""
    owner: int | None = None
    """Which API key may read it; None where there are no keys."""
    model: str = ""
    num_dropped: int = 0
    """Events from the first on that are not kept any more."""
    num_bytes: int = 0
    """Size of the kept events."""
    is_complete: bool = False
    _events: deque[bytes] = field(default_factory=deque[bytes])
    _listeners: list[_Listener] = field(default_factory=list[_Listener])
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _writing: asyncio.Task[None] | None = None

    @property
    def num_events(self) -> int:
        """Events so far, with those that were dropped."""
        return self.num_dropped + len(self._events)

    @property
    def is_writing(self) -> bool:
        """Whether the answer goes on."""
        return self._writing is not None and not self._writing.done()

    @property
    def is_heard(self) -> bool:
        """Whether somebody listens."""
        return bool(self._listeners)

    def go_on(self, first: Json, others: AsyncGenerator[Json]) -> None:
        """Write an answer whose first event is here; what is there already is passed over."""
        self._writing = asyncio.create_task(self._write(first, others))
        self._writing.add_done_callback(lambda task: self._tell())

    def rest(self) -> None:
        """Stop writing, which frees the engine for others; those who listen get no more."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
            self._tell()

    def drop_heard(self) -> int:
        """Forget the events that all listeners have; their size."""
        num_bytes = self.num_bytes
        num_heard = min((listener.num_events for listener in self._listeners), default=self.num_events)
        while self.num_dropped < num_heard:
            self.num_bytes -= len(self._events.popleft())
            self.num_dropped += 1
        return num_bytes - self.num_bytes

    async def events(self, num_events: int) -> AsyncGenerator[bytes]:
        """What follows the first `num_events` events, until the answer is complete."""
        listener = _Listener(num_events)
        self._listeners.append(listener)
        try:
            while True:
                while listener.num_events < self.num_events:
                    event = self._events[listener.num_events - self.num_dropped]
                    listener.num_events += 1
                    yield event
                if self.is_complete or self._writing is None:
                    return
                if self._writing.done():
                    self._writing.result()  # raises what went wrong with us
                await self._news.wait()
        finally:
            self._listeners.remove(listener)

    async def _write(self, first: Json, others: AsyncGenerator[Json]) -> None:
        num_passed, number = self.num_events, 1
        async with aclosing(others):
            if number > num_passed:
                self._add(spelled(first))
            try:
                async for chunk in others:
                    number += 1
                    if number > num_passed:
                        self._add(spelled(chunk))
            except ApiError as error:
                self._add(spelled(error.body))
        self._add(DONE)
        self.is_complete = True

    def _add(self, text: str) -> None:
        id_line = f"id: {self.name.event(self.num_events + 1)}\n" if self.is_kept else ""
        event = f"{id_line}data: {text}\n\n".encode()
        self._events.append(event)
        self.num_bytes += len(event)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def spelled(data: Mapping[str, object]) -> str:
    """Compact JSON."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))
