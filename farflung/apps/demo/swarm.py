"""The demonstration's processes: three block servers, one block range twice, the HTTP interface, and the dashboard."""

import importlib.util
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from farflung.apps.processes import Child, Supervisor

READY_SECONDS_MAX = 300.0
METRIC = re.compile(r'^farflung_wire_bytes_total\{direction="(\w+)",kind="(\w+)",peer="(\w+)"\} (\S+)$', re.MULTILINE)
DASHBOARD_AT = "dashboard at "
API_AT = re.compile(r"^serving .* at (http://\S+)/v1$")


@dataclass(slots=True)
class DemoSwarm:
    """A swarm of real processes on this machine, over the model in `model`."""

    supervisor: Supervisor
    model: Path
    num_blocks: int
    folder: Path
    """For homes, logs and tickets."""
    servers: dict[str, Child] = field(default_factory=dict[str, Child])
    """By the name shown."""
    api: Child | None = None
    dashboard: Child | None = None
    """None: its extra is not installed."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    def start(self) -> None:
        """Start everything and wait until a chain can answer."""
        half = self.num_blocks // 2
        first, second = f"0:{half}", f"{half}:{self.num_blocks}"
        ticket = self.folder / "ticket"
        self._serve("A", first, "--new-swarm", "--ticket-file", str(ticket))
        self.supervisor.wait_until(ticket.exists, seconds_max=READY_SECONDS_MAX, what="the swarm is founded")
        join = ("--join", ticket.read_text(encoding="ascii").strip())
        self._serve("B", second, *join)
        self._serve("B'", second, *join)
        arguments = ("api", str(self.model), *join, "--port", "0", "--threads", "1")
        self.api = self._start("api", *arguments, environment={"FARFLUNG_API_KEY": self.key})
        if importlib.util.find_spec("nicegui") is not None:
            self.dashboard = self._start("dashboard", "dashboard", str(self.model), *join, "--port", "0")
        self.supervisor.wait_until(self._is_ready, seconds_max=READY_SECONDS_MAX, what="all servers serve")

    @property
    def url(self) -> str:
        """Where the interface listens; empty: nowhere yet."""
        lines = self.api.lines() if self.api is not None else []
        return next((found[1] for line in lines if (found := API_AT.match(line))), "")

    @property
    def dashboard_url(self) -> str:
        """Where to watch; empty: nowhere."""
        lines = self.dashboard.lines() if self.dashboard is not None else []
        return next((line.removeprefix(DASHBOARD_AT) for line in lines if line.startswith(DASHBOARD_AT)), "")

    def peer_of(self, name: str) -> str:
        """The peer id of a server."""
        return next(line.split()[1] for line in self.servers[name].lines() if line.startswith("node "))

    def wire_bytes(self) -> dict[tuple[str, str, str], float]:
        """Bytes that the interface has counted, by (peer, kind, direction)."""
        with urlopen(f"{self.url}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        return {(peer, kind, direction): float(value) for direction, kind, peer, value in METRIC.findall(text)}

    def busiest(self, names: list[str], since: Mapping[tuple[str, str, str], float]) -> str:
        """Which of these servers has sent most hidden states since `wire_bytes` said that."""
        counted = self.wire_bytes()

        def num_bytes(name: str) -> float:
            key = (self.peer_of(name), "Output", "received")
            return counted.get(key, 0.0) - since.get(key, 0.0)

        return max(names, key=num_bytes)

    def stop_server(self, name: str) -> dict[str, dict[str, int]]:
        """Let a server leave; its own count of bytes by peer."""
        child = self.servers[name]
        child.stop()
        said = next(line for line in reversed(child.lines()) if line.startswith("leaves the swarm; "))
        return json.loads(said.removeprefix("leaves the swarm; "))

    def _serve(self, name: str, blocks: str, *options: str) -> None:
        arguments = ("serve", str(self.model), "--blocks", blocks, "--threads", "1", *options)
        self.servers[name] = self._start(f"server-{name}", *arguments)

    def _start(self, name: str, *arguments: str, environment: dict[str, str] | None = None) -> Child:
        home = self.folder / f"home-{name}"
        variables = {"FARFLUNG_HOME": str(home), "HF_HUB_OFFLINE": "1", **(environment or {})}
        return self.supervisor.command(name, arguments, variables)

    def _is_ready(self) -> bool:
        is_serving = all(any("serving blocks" in line for line in child.lines()) for child in self.servers.values())
        if not is_serving or not self.url or (self.dashboard is not None and not self.dashboard_url):
            return False
        try:
            with urlopen(f"{self.url}/health", timeout=10) as answer:
                return answer.status == 200
        except OSError:  # nobody listens yet, or the status is 503
            return False
