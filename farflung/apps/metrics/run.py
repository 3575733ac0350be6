"""What a run tells Prometheus: on its lead about all seats, on a seat about itself."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from farflung.apps.metrics.families import counter, gauge
from farflung.apps.runs.history import History, Point
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.run import Run
from farflung.apps.runs.seats import Seat

SEAT = ["kind", "run", "seat", "region"]


class RunCollector(Collector):
    """Reads the history of a run at the time of asking, from any thread."""

    def __init__(self, run: Run, history: History) -> None:
        self._own = [run.run.kind, run.run.name]
        self._history = history

    def collect(self) -> Iterable[Metric]:
        latest = self._history.latest.copy()  # in one step: reports come in meanwhile
        yield from point_families(self._own, [latest[seat] for seat in sorted(latest)])
        links = [([*self._own, one, other], number) for (one, other), number in self._history.link_bytes.items()]
        labels = ["kind", "run", "from", "to"]
        yield counter("farflung_run_link_bytes", "Bytes sent from one region to another", labels, sorted(links))


class SeatCollector(Collector):
    """Tells the newest report of one seat, counted since its process began."""

    def __init__(self, run: Run, seat: Seat) -> None:
        self._own = [run.run.kind, run.run.name]
        self._seat = seat
        self._points: list[Point] = []

    def take(self, report: SeatReport) -> None:
        """A newer one."""
        point = Point(
            seconds=0.0,
            seat=self._seat.name,
            region=self._seat.region,
            num_steps=report.num_steps,
            num_tokens=report.num_tokens,
            loss=report.loss,
            staleness=report.staleness,
            values=report.values,
            waiting_seconds=report.waiting_seconds,
        )
        self._points = [point]

    def collect(self) -> Iterable[Metric]:
        return point_families(self._own, self._points)


def point_families(own: list[str], points: list[Point]) -> Iterator[Metric]:
    """`own`: kind and name of the run."""
    labelled = [([*own, point.seat, point.region], point) for point in points]
    steps = [(labels, point.num_steps) for labels, point in labelled]
    yield counter("farflung_run_steps", "Steps that a seat has done", SEAT, steps)
    tokens = [(labels, point.num_tokens) for labels, point in labelled]
    yield counter("farflung_run_tokens", "Tokens that a seat has trained on or sampled", SEAT, tokens)
    waiting = [(labels, point.waiting_seconds) for labels, point in labelled]
    yield counter("farflung_run_waiting_seconds", "Time that a seat has waited for others", SEAT, waiting)
    losses = [(labels, point.loss) for labels, point in labelled if point.loss is not None]
    yield gauge("farflung_run_loss", "Mean of the training loss since the last report", SEAT, losses)
    staleness = [(labels, point.staleness) for labels, point in labelled if point.staleness is not None]
    yield gauge("farflung_run_staleness", "Versions between dispatch and arrival, mean so far", SEAT, staleness)
    values = [([*labels, name], value) for labels, point in labelled for name, value in sorted(point.values.items())]
    what = "What else a seat tells, by name, such as reward or epsilon"
    yield gauge("farflung_run_value", what, [*SEAT, "name"], values)
