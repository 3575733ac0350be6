"""What Prometheus hears from a real node, a run and the HTTP interface; see tests/loopback for whole processes."""

import httpx
import msgspec
import pytest

from farflung.apps.announced import TOPIC
from farflung.apps.http.metrics import Metrics, RerouteCollector
from farflung.apps.metrics.exporter import exporting, parse_address
from farflung.apps.metrics.node import NodeCollector
from farflung.apps.metrics.run import RunCollector, SeatCollector
from farflung.apps.runs.history import History, Point
from farflung.apps.runs.job import job_of
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.seats import Seat
from farflung.apps.wiring import Connection, Place
from farflung.systems.swarm.info import ServerState
from tests.apps.processes import wait_until
from tests.apps.test_status import info
from tests.grafana import Samples, read_dashboard, samples_in, scraped, unknown

pytestmark = pytest.mark.loopback


def of_a_node() -> tuple[Samples, dict[str, float]]:
    """Scraped at a node that serves blocks 0 and 1 of three, as another sees them."""
    with Connection(None, Place(is_rendezvous=True), new_swarm="watched") as founder:
        content = msgspec.structs.replace(info(0, 2), num_sessions=3).to_bytes()
        founder.bridge.call(lambda: founder.node.publish(TOPIC, content))
        told: list[str] = []
        with (
            Connection(founder.node.node.ticket.text(), Place()) as other,
            exporting("0", [NodeCollector(founder.node, founder.bridge.call)], told.append),
        ):
            joining = msgspec.structs.replace(info(2, 3), state=ServerState.JOINING).to_bytes()
            other.bridge.call(lambda: other.node.publish(TOPIC, joining))
            url = told[0].split()[-1]
            wait_until(
                lambda: (
                    "farflung_round_trip_seconds" in (samples := scraped(url)[0])
                    and len(samples.get("farflung_block_servers", [])) == 3
                ),
                seconds=60,
                what="the nodes have met",
            )
            return scraped(url)


def of_a_run() -> tuple[Samples, dict[str, float]]:
    """Scraped at a lead and at a seat."""
    run = job_of("finetune").form.load(None, ["run.name=watched"])
    history = History(link_bytes={("east", "west"): 70, ("west", "east"): 7})
    values = {"reward": 0.5}
    for seconds, steps in ((1.0, 3), (2.0, 5)):
        point = Point(seconds=seconds, seat="east-worker-0", region="east", num_steps=steps, num_tokens=9, loss=2.0)
        history.append(point)
    seat = SeatCollector(run, Seat(index=1, kind="worker", region="west", number=1))
    seat.take(SeatReport(seat=1, num_steps=8, staleness=1.5, values=values, waiting_seconds=4.0))
    told: list[str] = []
    with exporting("0", [RunCollector(run, history), seat], told.append):
        return scraped(told[0].split()[-1])


def of_the_interface() -> Samples:
    """Told by the HTTP interface after an answer of two tokens."""
    metrics = Metrics()
    metrics.count_request("/v1/completions", 200)
    metrics.count_waiting("tiny", 0)
    watch = metrics.watch("tiny", 3)
    watch.token(0)
    watch.token(0)
    watch.end()
    metrics.report(RerouteCollector(lambda: 0))
    return samples_in(metrics.text().decode())[0]


def test_a_node_tells_what_it_is_serves_and_sees() -> None:
    samples, sums = of_a_node()
    assert samples["farflung_node_info"][0]["swarm"] == "watched" and sums["farflung_nodes"] == 2
    assert sums["farflung_server_sessions"] == 3 and sums["farflung_server_cache_tokens_left"] == 32
    assert sums["farflung_block_servers"] == 2, "a server that is still joining takes no sessions"
    assert {labels["direction"] for labels in samples["farflung_wire_bytes_total"]} == {"sent", "received"}


def test_a_run_tells_the_newest_of_every_seat() -> None:
    samples, sums = of_a_run()
    assert sums["farflung_run_steps_total"] == 5 + 8 and sums["farflung_run_link_bytes_total"] == 77
    (value,) = samples["farflung_run_value"]
    assert value == {"kind": "finetune", "run": "watched", "seat": "west-worker-1", "region": "west", "name": "reward"}


def test_the_dashboard_asks_for_what_is_told() -> None:
    dashboard, served = read_dashboard(), [of_a_node()[0], of_a_run()[0], of_the_interface()]
    assert unknown(dashboard, served) == []
    dashboard["panels"][1]["targets"][0] |= {"expr": "sum by (place) (farflung_nodez)", "legendFormat": ""}
    dashboard["panels"][2]["targets"][0] |= {"expr": "farflung_nodes", "legendFormat": "{{place}}"}
    assert unknown(dashboard, served) == ["farflung_nodez", "farflung_nodes: place"]


def test_addresses_of_metrics() -> None:
    assert parse_address("9100") == ("127.0.0.1", 9100)
    assert parse_address("0.0.0.0:0") == ("0.0.0.0", 0) and parse_address("[::]:9100") == ("::", 9100)
    for text in ("here", "host:", "1.2.3.4:99999"):
        with pytest.raises(ValueError, match="--metrics takes a port or host:port"):
            parse_address(text)
    told: list[str] = []
    with exporting("0", [], told.append):
        port = told[0].rpartition(":")[2].removesuffix("/metrics")
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port}"), exporting(port, [], told.append):
            pass
    with exporting(port, [], told.append):
        assert httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).status_code == 200
