"""What the interface tells Prometheus: requests, tokens, waiting times, sessions and reroutes."""

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from farflung.apps.metrics.families import counter

SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """All series of one interface, in a registry of its own; safe to feed from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        model = ["model"]
        self._requests = Counter(
            "farflung_requests", "Requests by path and status", ["path", "status"], registry=self._registry
        )
        self._prompt_tokens = Counter("farflung_prompt_tokens", "Tokens read", model, registry=self._registry)
        self._answer_tokens = Counter("farflung_generated_tokens", "Tokens written", model, registry=self._registry)
        self._first_token = Histogram(
            "farflung_time_to_first_token_seconds",
            "From the request being taken up to its first token",
            model,
            buckets=SECONDS_BUCKETS,
            registry=self._registry,
        )
        self._token = Histogram(
            "farflung_time_per_token_seconds",
            "Between two tokens of one answer",
            model,
            buckets=SECONDS_BUCKETS,
            registry=self._registry,
        )
        self._running = Gauge("farflung_sessions", "Answers being written", model, registry=self._registry)
        self._waiting = Gauge("farflung_waiting", "Requests waiting for their turn", model, registry=self._registry)

    def count_request(self, path: str, status: int) -> None:
        """One request has been answered (or its stream has ended)."""
        self._requests.labels(path, str(status)).inc()

    def count_waiting(self, model: str, change: int) -> None:
        """`change` more requests wait for `model`."""
        self._waiting.labels(model).inc(change)

    def count_prompt_tokens(self, model: str, num_tokens: int) -> None:
        """`model` has read so many more."""
        self._prompt_tokens.labels(model).inc(num_tokens)

    def watch(self, model: str, num_prompt_tokens: int) -> "AnswerWatch":
        """Begin to time one answer."""
        self.count_prompt_tokens(model, num_prompt_tokens)
        return AnswerWatch(
            self._first_token.labels(model),
            self._token.labels(model),
            self._answer_tokens.labels(model),
            self._running.labels(model),
        )

    def report(self, collector: Collector) -> None:
        """Also report what `collector` finds at the time of asking."""
        self._registry.register(collector)

    def text(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self._registry)


class AnswerWatch:
    """Times the tokens of one answer."""

    def __init__(self, first_token: Histogram, token: Histogram, num_tokens: Counter, running: Gauge) -> None:
        self._first_token = first_token
        self._token = token
        self._num_tokens = num_tokens
        self._running = running
        self._seconds_before = time.perf_counter()
        self._row_before: int | None = None
        running.inc()

    def token(self, row: int) -> None:
        """One more token; the rows of one forward come in ascending order, and its first token is timed."""
        self._num_tokens.inc()
        if self._row_before is None or row <= self._row_before:
            now = time.perf_counter()
            (self._first_token if self._row_before is None else self._token).observe(now - self._seconds_before)
            self._seconds_before = now
        self._row_before = row

    def end(self) -> None:
        """The answer is complete or was given up."""
        self._running.dec()


class RerouteCollector(Collector):
    """Counts at the time of asking."""

    def __init__(self, num_reroutes: Callable[[], int]) -> None:
        self._num_reroutes = num_reroutes

    def collect(self) -> Iterable[Metric]:
        what = "Stages moved to another server in mid-answer"
        return [counter("farflung_reroutes", what, [], [([], self._num_reroutes())])]
