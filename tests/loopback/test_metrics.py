"""What every role tells Prometheus, scraped from real processes, and the Grafana dashboard that asks for it."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from farflung.apps.fork_server import Forked, ForkServer
from farflung.apps.tickets import invite
from tests.apps.runs import HALOS, write_run
from tests.apps.tunings import write_tuning
from tests.grafana import Samples, read_dashboard, scraped, unknown
from tests.loopback.fleet import wait_until
from tests.loopback.pretraining import Command, wait_trained

pytestmark = pytest.mark.loopback
ANY_PORT = ["--metrics", "0"]
TWO_WORKERS = "regions=[{name='east', workers=1}, {name='west', workers=1}]"


def metrics_url(process: Forked, log: Path) -> str:
    """Where a process says that its metrics are."""

    def told() -> list[str]:
        assert process.poll() is None, log.read_text()
        return re.findall(r"metrics\s+at\s+(http://\S+)", log.read_text())

    wait_until(told, "the process tells where its metrics are")
    return told()[0]


def wait_scraped(url: str, holds: Callable[[dict[str, float]], object], what: str) -> tuple[Samples, dict[str, float]]:
    """What is there once the condition holds."""
    wait_until(lambda: holds(scraped(url)[1]), what)
    return scraped(url)


def served_by_a_swarm(folder: Path, forge: ForkServer, tmp_path: Path) -> list[Samples]:
    """Of a block server and of the HTTP interface, which has answered."""
    ticket, logs = tmp_path / "ticket", [tmp_path / "serve.log", tmp_path / "api.log"]
    for log in logs:
        log.touch()
    arguments = ["serve", str(folder), "--new-swarm", "--threads", "1", "--ticket-file", str(ticket), *ANY_PORT]
    server = forge.start(arguments, {"FARFLUNG_HOME": str(tmp_path / "server")}, logs[0])
    own = metrics_url(server, logs[0])
    samples, sums = wait_scraped(own, lambda sums: sums.get("farflung_server_online"), "the server serves")
    assert sums["farflung_server_blocks"] == 4 and sums["farflung_block_servers"] == 4
    assert samples["farflung_node_info"][0]["role"] == "admin"
    arguments = ["api", str(folder), "--join", invite(ticket.read_text(), "client", "1h", tmp_path), "--port", "0"]
    interface = forge.start(arguments, {"FARFLUNG_HOME": str(tmp_path / "api")}, logs[1])
    wait_until(lambda: "/v1" in logs[1].read_text() or interface.poll() is not None, "the interface answers")
    (url,) = re.findall(r"at (http://\S+)/v1", logs[1].read_text())
    body = {"model": folder.name, "prompt": [70, 71, 72], "max_tokens": 4, "logit_bias": {"0": -100}}
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=120).status_code == 200
    of_interface, answered = scraped(f"{url}/metrics")
    assert answered["farflung_generated_tokens_total"] == 4 and answered["farflung_wire_bytes_total"] > 0
    _, worked = wait_scraped(own, lambda sums: sums["farflung_server_work_tokens_total"], "what was computed is told")
    assert worked["farflung_server_work_tokens_total"] >= 3 and worked["farflung_server_work_seconds_total"] > 0
    of_server, _ = wait_scraped(
        own, lambda sums: "farflung_round_trip_seconds" in sums and "farflung_clock_ahead_seconds" in sums, "they meet"
    )
    return [of_server, of_interface]


def served_by_a_run(command: Command, forge: ForkServer, tmp_path: Path) -> list[Samples]:
    """Of a lead and of a worker that has joined."""
    leading = metrics_url(command.process, command.output)  # pyright: ignore[reportArgumentType]
    wait_trained(command, 5_000)
    of_lead, sums = wait_scraped(leading, lambda sums: sums.get("farflung_run_link_bytes_total"), "regions talk")
    seats = {labels["seat"] for labels in of_lead["farflung_run_steps_total"]}
    assert {"east-worker-0", "west-worker-1"} <= seats and sums["farflung_run_tokens_total"] >= 5_000
    log, ticket = tmp_path / "joining.log", (command.folder / "ticket").read_text().strip()
    arguments = ["join", ticket, "--home", str(tmp_path / "elsewhere"), *ANY_PORT]
    log.touch()
    joining = forge.start(arguments, {"FARFLUNG_CACHE": str(tmp_path / "cache")}, log)
    of_seat, _ = wait_scraped(
        metrics_url(joining, log), lambda sums: sums.get("farflung_run_steps_total"), "the worker works"
    )
    assert len(of_seat["farflung_run_steps_total"]) == 1 and of_seat["farflung_node_info"][0]["role"] == "worker"
    return [of_lead, of_seat]


def served_by_a_simulation(command: Command) -> Samples:
    """Of a lead of tuning, which tells values of its own."""
    url = metrics_url(command.process, command.output)  # pyright: ignore[reportArgumentType]
    samples, _ = wait_scraped(url, lambda sums: "farflung_run_value" in sums, "it tells values")
    assert samples["farflung_run_value"][0]["kind"] == "finetune"
    return samples


@pytest.mark.slow
def test_the_dashboard_asks_for_what_roles_tell(
    folder: Path, forge: ForkServer, lead: Callable[..., Command], tmp_path: Path
) -> None:
    dashboard = read_dashboard()
    served = served_by_a_swarm(folder, forge, tmp_path)
    path = write_run(tmp_path, algorithm=HALOS, tokens=10_000_000)
    pretraining = lead(str(path), "--set", TWO_WORKERS, "--set", "training.joiners_max=1", *ANY_PORT)
    served += served_by_a_run(pretraining, forge, tmp_path)
    pretraining.send(signal.SIGKILL)  # nothing of it is to be saved
    tuning = tmp_path / "tuning"
    tuning.mkdir()
    simulated = Command(
        tuning, str(write_tuning(tuning, rounds=10_000)), "--simulate", *ANY_PORT, kind="finetune", forge=forge
    )
    try:
        served.append(served_by_a_simulation(simulated))
    finally:
        simulated.send(signal.SIGKILL)
    assert unknown(dashboard, served) == []
