"""Spans of real processes: one token through its servers, one update of pretraining through its."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from farflung.apps.fork_server import ForkServer
from farflung.apps.tickets import invite
from farflung.apps.tracing import TRACES_VARIABLE
from tests.apps.runs import HALOS, ONE_SERVER, write_run
from tests.forge import run
from tests.loopback.fleet import wait_until
from tests.loopback.pretraining import Command

pytest.importorskip("opentelemetry.proto", reason="the extra otel is not installed")
pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
from tests.loopback.collector import Collector, Told, collecting

pytestmark = pytest.mark.loopback
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200", "NO_PROXY": "127.0.0.1"}
"""Milliseconds after which spans are sent."""
ONE_WORKER = ["--set", "regions=[{name='east', workers=1}]", "--set", "links=[]"]
TWO_SITES = ["--set", "regions=[{name='east', workers=1}, {name='west', workers=1}]"]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def lies_within(inner: Told, outer: Told) -> bool:
    return outer.began <= inner.began <= inner.ended <= outer.ended


def test_a_token_is_followed_through_its_servers(
    folder: Path, forge: ForkServer, collector: Collector, tmp_path: Path
) -> None:
    traced, ticket = {**SOON, TRACES_VARIABLE: collector.address}, tmp_path / "ticket"
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    founding, joining = ["--new-swarm", "--ticket-file", str(ticket)], ["--blocks", "2:4", "--join"]
    serve = ["serve", str(folder), "--threads", "1"]
    forge.start([*serve, "--blocks", "0:2", *founding], {**traced, "FARFLUNG_HOME": str(tmp_path / "a")}, logs[0])
    wait_until(ticket.exists, "the swarm is founded")
    forge.start([*serve, *joining, ticket.read_text()], {**traced, "FARFLUNG_HOME": str(tmp_path / "b")}, logs[1])
    wait_until(lambda: all("serving blocks" in log.read_text() for log in logs if log.exists()), "both serve")
    client = invite(ticket.read_text(), "client", "1h", tmp_path)
    asking = ["generate", str(folder), "--prompt", "and", "--max-tokens", "5", "--join", client]
    ended = run(forge, tmp_path, "--traces", collector.address, *asking, **SOON)
    assert ended.status == 0, ended.text
    wait_until(lambda: sum(len(chain) == 3 for chain in collector.chains("step")) >= 5, "spans of all steps have come")
    for asked, first, second in [chain for chain in collector.chains("step") if len(chain) == 3]:
        assert len({asked.node, first.node, second.node}) == 3 and len({asked.trace, first.trace, second.trace}) == 1
        assert lies_within(first, asked) and lies_within(second, asked) and first.began <= second.began
        assert asked.events[0] == "sent Step" and asked.events.count("received Output") == 2
        assert first.events[0] == second.events[0] == "received Step"
        assert "sent Step" in first.events and second.events[-1] == "sent Output"


@pytest.mark.parametrize(
    ("algorithm", "options", "num_nodes"),
    [
        pytest.param(ONE_SERVER, ONE_WORKER, 2, id="one server"),
        pytest.param(HALOS, TWO_SITES, 3, id="a local and the global server", marks=pytest.mark.slow),
    ],
)
def test_an_update_is_followed_up_the_tree(
    lead: Callable[..., Command],
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    algorithm: str,
    options: list[str],
    num_nodes: int,
) -> None:
    command = lead(
        str(write_run(tmp_path, algorithm=algorithm, tokens=10_000_000)),
        *options,
        variables={**SOON, TRACES_VARIABLE: collector.address},
    )

    def whole() -> list[list[Told]]:
        return [chain for chain in collector.chains("update") if len({span.node for span in chain}) == num_nodes]

    wait_until(whole, "an update has gone all the way")
    command.send(signal.SIGKILL)  # nothing of it is to be saved
    for chain in whole():
        assert chain[0].events[0] == "sent UpdatePart" and "received UpdateTaken" in chain[0].events
        assert chain[-1].events[0] == "received UpdatePart" and "sent UpdateTaken" in chain[-1].events
        assert [span.began for span in chain] == sorted(span.began for span in chain)
