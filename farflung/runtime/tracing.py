"""Spans where frames meet the wire: what a node does for one thing that messages carry on, such as a step of a session.

    client: first Step sent .. last Output heard
      └── server 1: Step heard .. Step sent on        waiting and computing
            └── server 2: Step heard .. Output sent

Messages say what they carry on (`Follow`), so that spans are right however servers batch, and roles know nothing of
them. What is sent first while something else is handled (an update of a server, once it has applied one) is below that.
"""

import asyncio
import contextlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags, Tracer

from farflung.wire.message import kind
from farflung.world.address import PeerId

SWEEP_SECONDS = 0.5
QUIET_SECONDS = 5.0
"""After so long without a message, what was answered is over; its span ended with the last one. Clients hear a copy of
what each server of a chain has computed, so that between two messages of a long prompt's step lie seconds."""
SILENT_SECONDS_MAX = 120.0
"""The same of what was never answered."""
NUM_KEPT_MAX = 4096
"""Of more things than that, those without a message for longest are over: their spans end with their last message."""
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
"""Of W3C Trace Context, version 00."""


class Thing(NamedTuple):
    """What a message carries on."""

    name: str
    key: Hashable


Follow = Callable[[object], Thing | None]
"""What a message carries on; None: nothing that is followed."""


@dataclass(slots=True)
class _Kept:
    span: Span
    context: Context
    last_ns: int
    was_sent: bool
    """Which way the newest message went."""
    is_answered: bool = False
    """Messages have gone both ways."""
    is_open: bool = True


class Tracing:
    """One node's spans. Made, used and closed on its event loop."""

    def __init__(
        self, tracer: Tracer, peer: PeerId, follow: Follow, flush: Callable[[], object] = lambda: None
    ) -> None:
        """`flush`: sends on what has ended; called at the end, when no other time may be left for it."""
        self._tracer = tracer
        self._flush = flush
        self._peer = peer
        self._follow = follow
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._sweeping: asyncio.TimerHandle | None = None

    def sent(self, destination: PeerId, message: object) -> str:
        """A message leaves; the W3C traceparent that goes with it, empty if it is not followed."""
        thing = self._follow(message)
        if thing is None:
            return ""
        kept = self._touch(thing, message, None, was_sent=True)
        kept.span.add_event(f"sent {kind(message)}", {"peer": destination}, kept.last_ns)
        found = kept.span.get_span_context()
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"

    @contextlib.contextmanager
    def receiving(self, source: PeerId, message: object, traceparent: str) -> Iterator[None]:
        """A message has come, and is handled within the block."""
        thing = self._follow(message)
        parent = _parent(traceparent)
        if thing is None or (parent is None and thing.key not in self._kept):
            yield
            return
        kept = self._touch(thing, message, parent, was_sent=False)
        kept.span.add_event(f"received {kind(message)}", {"peer": source}, kept.last_ns)
        token = contexts.attach(kept.context)
        try:
            yield
        finally:
            contexts.detach(token)

    def close(self) -> None:
        """End all spans."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for kept in self._kept.values():
            _end(kept)
        self._kept.clear()
        self._flush()

    def _touch(self, thing: Thing, message: object, parent: Context | None, *, was_sent: bool) -> _Kept:
        now_ns = time.time_ns()
        kept = self._kept.get(thing.key)
        if kept is None or not kept.is_open:
            above = parent or (kept.context if kept is not None else contexts.get_current())
            attributes = {"farflung.node": self._peer, "farflung.message": kind(message)}
            span = self._tracer.start_span(thing.name, above, attributes=attributes, start_time=now_ns)
            kept = self._kept[thing.key] = _Kept(span, trace.set_span_in_context(span, above), now_ns, was_sent)
        self._kept.move_to_end(thing.key)
        kept.is_answered |= kept.was_sent != was_sent
        kept.last_ns, kept.was_sent = now_ns, was_sent
        while len(self._kept) > NUM_KEPT_MAX:
            _end(self._kept.popitem(last=False)[1])
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        return kept

    def _sweep(self) -> None:
        now_ns, is_any_open = time.time_ns(), False
        for kept in self._kept.values():
            seconds_max = QUIET_SECONDS if kept.is_answered else SILENT_SECONDS_MAX
            if now_ns - kept.last_ns > seconds_max * 1e9:
                _end(kept)
            is_any_open |= kept.is_open
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(SWEEP_SECONDS, self._sweep) if is_any_open else None


def _end(kept: _Kept) -> None:
    if kept.is_open:
        kept.is_open = False
        kept.span.end(kept.last_ns)


def _parent(traceparent: str) -> Context | None:
    """What a peer says is above; None for nothing, and for what is no traceparent."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    flags = TraceFlags(int(found[3], 16))
    above = SpanContext(int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(NonRecordingSpan(above), Context()) if above.is_valid else None
