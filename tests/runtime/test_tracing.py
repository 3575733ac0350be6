"""Spans of one node: which way they hang together, when they end, and what peers cannot do with them."""

from collections.abc import AsyncIterator

import pytest

import farflung.systems.hierarchy.messages as of_trees
import farflung.systems.swarm.messages as of_swarms
from farflung.apps.tracing import FOLLOWED, follow
from farflung.systems.swarm.messages import Behind, CloseSession, Output
from farflung.wire.tensor import WireTensor
from farflung.world.address import PeerId
from tests.runtime.conftest import eventually

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from farflung.runtime import tracing as module
from farflung.runtime.tracing import Tracing

OWN, OTHER = PeerId("a" * 52), PeerId("b" * 52)
ABOVE = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
HIDDEN = WireTensor("float32", (1,), "raw", memoryview(bytes(4)))


def behind(upto: int) -> Behind:
    return Behind(session="s", first=0, last=1, upto=upto, applied=0)


def output(upto: int) -> Output:
    return Output(session="s", first=0, last=1, base=0, upto=upto, hidden=HIDDEN)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def tracing(exporter: InMemorySpanExporter) -> AsyncIterator[Tracing]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider.get_tracer("test"), OWN, follow)
    yield tracing
    tracing.close()


def one(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


async def test_messages_of_one_step_are_events_of_one_span(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    told = tracing.sent(OTHER, output(7))
    with tracing.receiving(OTHER, behind(7), told):
        assert tracing.sent(OTHER, output(7)) == told
    tracing.close()
    assert [event.name for event in one(exporter).events] == ["sent Output", "received Behind", "sent Output"]
    assert one(exporter).parent is None and told.split("-")[2] == f"{id_of(one(exporter)):016x}"


async def test_what_is_sent_first_while_another_is_handled_is_below_it(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    with tracing.receiving(OTHER, output(1), ABOVE):
        tracing.sent(OTHER, output(2))
    tracing.sent(OTHER, output(3))
    tracing.close()
    first, second, third = exporter.get_finished_spans()
    assert first.parent is not None and f"{first.parent.span_id:016x}" == "2" * 16
    assert second.parent is not None and second.parent.span_id == id_of(first)
    assert third.parent is None


@pytest.mark.parametrize("parent", ["", "nonsense", ABOVE.replace("1", "0", 32), "01" + ABOVE[2:], ABOVE.upper() + "x"])
async def test_who_names_no_trace_begins_none(tracing: Tracing, exporter: InMemorySpanExporter, parent: str) -> None:
    with tracing.receiving(OTHER, output(1), parent):
        pass
    tracing.close()
    assert not exporter.get_finished_spans()


async def test_what_is_not_followed_leaves_no_trace(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    assert tracing.sent(OTHER, CloseSession(session="s")) == ""
    tracing.close()
    assert not exporter.get_finished_spans()


async def test_a_span_ends_with_its_last_message_once_it_is_quiet(
    tracing: Tracing, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.01)
    with tracing.receiving(OTHER, output(1), ABOVE):
        pass
    told = tracing.sent(OTHER, output(1))
    tracing.sent(OTHER, output(2))  # which nobody answers
    await eventually(exporter.get_finished_spans)
    ended = one(exporter)
    assert ended.end_time == ended.events[-1].timestamp
    again = tracing.sent(OTHER, output(1))
    assert again[:35] == told[:35] and again != told  # of the same trace
    tracing.close()
    late = exporter.get_finished_spans()[-1]
    assert late.parent is not None and late.parent.span_id == id_of(ended)


async def test_no_peer_makes_a_node_keep_more_than_so_many(
    tracing: Tracing, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NUM_KEPT_MAX", 10)
    for upto in range(1, 31):
        with tracing.receiving(OTHER, output(upto), ABOVE):
            pass
    assert len(exporter.get_finished_spans()) == 20


async def test_of_too_many_those_without_a_message_for_longest_are_over(
    tracing: Tracing, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NUM_KEPT_MAX", 3)

    def hear(upto: int) -> None:
        with tracing.receiving(OTHER, output(upto), ABOVE):
            pass

    for upto in (1, 2, 3):
        hear(upto)
    tracing.sent(OTHER, output(1))  # the oldest, and not any more the one without a message for longest
    hear(4)
    (ended,) = exporter.get_finished_spans()
    assert [event.name for event in ended.events] == ["received Output"] and ended.end_time == ended.events[
        -1
    ].timestamp
    hear(5)
    tracing.close()
    spans = exporter.get_finished_spans()
    assert len(spans) == 5
    began = sorted(spans, key=lambda span: span.start_time or 0)
    assert [began.index(span) + 1 for span in spans] == [2, 3, 1, 4, 5], "in the order in which they ended"
    assert len(began[0].events) == 2, "what was kept went on"


def test_all_that_is_followed_are_messages_with_those_fields() -> None:
    for name, (_, fields) in FOLLOWED.items():
        kind = getattr(of_swarms, name, None) or getattr(of_trees, name)
        for field in fields:
            head, _, rest = field.partition(".")
            assert head in kind.__struct_fields__
            assert not rest or rest in of_trees.ModelHeader.__struct_fields__
