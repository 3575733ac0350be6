"""OpenTelemetry traces of this process's nodes: which messages are followed, and where spans go (extra `otel`)."""

import functools
import importlib.util
import os
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING

from farflung.world.address import PeerId

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from farflung.runtime.tracing import Thing, Tracing

TRACES_VARIABLE = "FARFLUNG_TRACES"
"""Where spans go; they are made if it is set."""
FLUSH_MILLISECONDS_MAX = 2000
"""How long a node that ends tries to send its last spans."""

FOLLOWED: dict[str, tuple[str, tuple[str, ...]]] = {
    "Step": ("step", ("session", "upto")),
    "Output": ("step", ("session", "upto")),
    "SessionRefused": ("step", ("session", "upto")),
    "Behind": ("step", ("session", "upto")),
    "UpdatePart": ("update", ("name", "lease", "sequence")),
    "PartTaken": ("update", ("name", "lease", "sequence")),
    "UpdateTaken": ("update", ("name", "lease", "sequence")),
    "ModelPart": ("update", ("name", "lease", "header.sequence")),
}
"""By kind of message: what it carries on, and the fields that tell which. A step is one token (or prompt) of a session,
an update one of a tree's, up to the model that answers it."""


def check_traces(endpoint: str) -> None:
    """Let this process, and those it starts, send spans to an OTLP collector, such as http://localhost:4318.

    Raises:
        ValueError: no address, or the extra is not installed.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"--traces {endpoint}: give the address of an OTLP collector, such as http://localhost:4318")
    if not _is_installed():
        raise ValueError("traces need the extra otel: pip install 'farflung[otel]'")
    os.environ[TRACES_VARIABLE] = endpoint


def _is_installed() -> bool:
    try:
        needed = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
        return all(importlib.util.find_spec(name) is not None for name in needed)
    except ModuleNotFoundError:  # not even what they are in
        return False


def tracing_wanted() -> "Callable[[PeerId], Tracing] | None":
    """Makes the spans of a node; None: nobody has asked for any."""
    if not os.environ.get(TRACES_VARIABLE):
        return None
    from farflung.runtime.tracing import Tracing

    provider = _provider()
    tracer, flush = provider.get_tracer("farflung"), functools.partial(provider.force_flush, FLUSH_MILLISECONDS_MAX)
    return lambda peer: Tracing(tracer, peer, follow, flush)


def follow(message: object) -> "Thing | None":
    """What a message carries on."""
    from farflung.runtime.tracing import Thing

    found = FOLLOWED.get(type(message).__name__)
    if found is None:
        return None
    name, fields = found
    values = tuple(_field(field)(message) for field in fields)
    return Thing(name, (name, *values)) if values[-1] else None  # before the first update comes a model


@functools.cache
def _field(name: str) -> Callable[[object], object]:
    return attrgetter(name)


@functools.cache
def _provider() -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    endpoint = f"{os.environ[TRACES_VARIABLE].rstrip('/')}/v1/traces"
    provider = TracerProvider(resource=Resource.create({"service.name": "farflung"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider
