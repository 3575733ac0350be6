"""What processes send to an OTLP collector: a real one's HTTP side, in a thread of the test."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class Told:
    """A span as it came."""

    name: str
    trace: bytes
    span: bytes
    parent: bytes
    """Empty: the first of its trace."""
    node: str
    began: int
    """Nanoseconds, like the next."""
    ended: int
    events: tuple[str, ...]


@dataclass
class Collector:
    """Keeps all spans."""

    address: str = ""
    spans: list[Told] = field(default_factory=list[Told])

    def chains(self, name: str) -> list[list[Told]]:
        """Of every span of a name that nothing is below: it, after all above it, the first of the trace first."""
        known = {span.span: span for span in self.spans}
        above = {span.parent for span in self.spans}
        found: list[list[Told]] = []
        for last in [span for span in self.spans if span.name == name and span.span not in above]:
            chain = [last]
            while chain[0].parent in known:
                chain.insert(0, known[chain[0].parent])
            if not chain[0].parent:
                found.append(chain)
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on this machine until the end of the block."""
    collector = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    collector.spans += [_told(span) for span in scope.spans]
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Not to the terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _told(span: object) -> Told:
    attributes = {one.key: one.value.string_value for one in span.attributes}  # pyright: ignore[reportAttributeAccessIssue]
    return Told(
        name=span.name,  # pyright: ignore[reportAttributeAccessIssue]
        trace=span.trace_id,  # pyright: ignore[reportAttributeAccessIssue]
        span=span.span_id,  # pyright: ignore[reportAttributeAccessIssue]
        parent=span.parent_span_id,  # pyright: ignore[reportAttributeAccessIssue]
        node=attributes["farflung.node"],
        began=span.start_time_unix_nano,  # pyright: ignore[reportAttributeAccessIssue]
        ended=span.end_time_unix_nano,  # pyright: ignore[reportAttributeAccessIssue]
        events=tuple(event.name for event in span.events),  # pyright: ignore[reportAttributeAccessIssue]
    )
