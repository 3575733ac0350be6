"""Swarms of real processes on this machine, and a client's model that counts the seconds of every token."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import farflung.runtime  # noqa: F401 (tells gRPC, before it is loaded, to leave standard error alone)  # isort: skip
import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from farflung.apps.library import ConnectedModel, connect_model
from farflung.apps.wiring import Connection
from farflung.model.source import ModelSource
from farflung.systems.swarm.config import SessionConfig
from farflung.world.address import PeerId

START_SECONDS_MAX = 600.0
STOP_SECONDS_MAX = 10.0
FARFLUNG = [sys.executable, "-c", "from farflung.apps.cli import main; main()"]
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class ServerProcess:
    """One `farflung serve`."""

    process: subprocess.Popen[bytes]
    started_at: float
    """Of `time.perf_counter`."""
    endpoint: str
    """Where others reach it."""
    log: Path
    """What it prints."""

    def wait_serving(self) -> None:
        """Returns when it says that it serves its blocks."""
        _wait_for(self.log, "serving blocks", self.process)

    def memory_bytes(self) -> tuple[int, int]:
        """(resident, proportional share): shared pages count in full in the first, by parts in the second."""
        memory = psutil.Process(self.process.pid).memory_full_info()
        return memory.rss, memory.pss


@dataclass
class Links:
    """What lies between every two processes of a swarm: each server is reached through a proxy of its own."""

    one_way_seconds: float = 0.0
    bytes_per_second: float = float("inf")


@dataclass
class LocalSwarm:
    """Servers of one model on this machine; `links` None: they reach each other directly."""

    model: Path
    folder: Path
    num_threads: int
    links: Links | None = None
    options: Sequence[str] = ()
    """More of `farflung serve`."""
    ticket: str = ""
    servers: list[ServerProcess] = field(default_factory=list[ServerProcess])
    _proxies: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    def __enter__(self) -> LocalSwarm:
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self.servers:
            server.process.terminate()
        for process in [*(server.process for server in self.servers), *self._proxies]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS_MAX if process not in self._proxies else 0)
            process.kill()
            process.wait()

    def start(self, blocks: str) -> ServerProcess:
        """Start one more server; the first founds the swarm, and this returns when its ticket is there."""
        number, port = len(self.servers), _free_port()
        endpoint = f"127.0.0.1:{port}" if self.links is None else f"127.0.0.1:{self.proxy(port, self.links)}"
        ticket_file = self.folder / "ticket"
        entry = ["--join", self.ticket] if self.ticket else ["--new-swarm", "--ticket-file", str(ticket_file)]
        program = [*FARFLUNG, "serve", str(self.model), *entry, "--blocks", blocks, *self.options]
        place = [
            *self.options,
            "--home",
            str(self.folder / f"server-{number}"),
            "--port",
            str(port),
            "--advertise",
            endpoint,
        ]
        started_at = time.perf_counter()
        log = self.folder / f"server-{number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen([*program, *place, "--threads", str(self.num_threads)], stdout=output)
        self.servers.append(ServerProcess(process, started_at, endpoint, log))
        if not self.ticket:
            self.ticket = _wait_for(ticket_file, "farflung", process)
        return self.servers[-1]

    def at(self, endpoint: str) -> ServerProcess:
        """The newest server reached there."""
        return next(server for server in reversed(self.servers) if server.endpoint == endpoint)

    def proxy(self, port: int, links: Links) -> int:
        """The port of a new proxy process in front of a port of this machine."""
        shape = ["--one-way-seconds", str(links.one_way_seconds), "--bytes-per-second", str(links.bytes_per_second)]
        program = [sys.executable, "-m", "bench.shaping", "--target", f"127.0.0.1:{port}", *shape]
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._proxies.append(process)
        assert process.stdout is not None
        return int(process.stdout.readline())


class BarePing:
    """Round trips of plain TCP over a link like a swarm's: what its delays really are here and now."""

    def __init__(self, swarm: LocalSwarm, links: Links, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        listener = socket.create_server(("127.0.0.1", 0))
        port = swarm.proxy(listener.getsockname()[1], links)
        self._near = socket.create_connection(("127.0.0.1", port))
        self._far, _ = listener.accept()
        listener.close()
        for end in (self._near, self._far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def one_way_seconds(self) -> float:
        """From one end to the other, once; called when nothing else is on the link."""
        started_at = time.perf_counter()
        self._near.sendall(bytes(self._num_bytes))
        num_left = self._num_bytes
        while num_left:
            num_left -= len(self._far.recv(num_left))
        return time.perf_counter() - started_at


def split_blocks(num_blocks: int, num_servers: int) -> list[str]:
    """Even ranges."""
    cuts = [num_blocks * number // num_servers for number in range(num_servers + 1)]
    return [f"{first}:{last}" for first, last in itertools.pairwise(cuts)]


def start_servers(swarm: LocalSwarm, ranges: Sequence[str]) -> None:
    """Start a server per range; all of them load at the same time."""
    for blocks in ranges:
        swarm.start(blocks)
    for server in swarm.servers:
        server.wait_serving()


@contextlib.contextmanager
def connected(
    swarm: LocalSwarm, config: SessionConfig | None = None, dtype: torch.dtype = torch.float32
) -> Iterator[ConnectedModel]:
    """A client of the swarm in this process."""
    source = ModelSource.open(str(swarm.model))
    with Connection(swarm.ticket) as connection:
        client = connect_model(source, connection, config=config, dtype=dtype)
        deadline = time.monotonic() + START_SECONDS_MAX
        while (reason := client.why_unavailable()) is not None:
            if time.monotonic() > deadline:
                raise TimeoutError(reason)
            time.sleep(0.02)
        yield client


def endpoint_of(client: ConnectedModel, peer: PeerId) -> str:
    """Where a server of the client's view is reached."""
    return client.connection.node.member.view[peer].contact.endpoints[0]


def load_local(model: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The whole model in transformers, in this process, with weights in memory of their own as servers have them."""
    local: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    for weight in local.parameters():
        weight.data = weight.data.clone()
    return local


class TokenClock(BaseStreamer):
    """Notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())
        self.tokens += value.reshape(-1).tolist()

    def end(self) -> None:
        """Nothing is left to do."""


def decode(model: Any, prompt: torch.Tensor, num_tokens: int) -> TokenClock:
    """Greedy continuation of one prompt; the first entry of the result is the prompt's own."""
    clock = TokenClock()
    model.generate(prompt, do_sample=False, max_new_tokens=num_tokens, streamer=clock)
    return clock


def token_seconds(clock: TokenClock) -> list[float]:
    """What each token took that was decoded alone: all but the first, which the prompt's forward gave."""
    return [later - earlier for earlier, later in itertools.pairwise(clock.times[1:])]


def prompt_of(num_tokens: int, vocabulary_size: int, seed: int = 0) -> torch.Tensor:
    """Token ids [1, tokens], the same in every run."""
    generator = torch.Generator().manual_seed(num_tokens + seed)
    return torch.randint(2, vocabulary_size, (1, num_tokens), generator=generator)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(path: Path, sentence: str, process: subprocess.Popen[bytes]) -> str:
    """What `process` writes to `path`, as soon as it holds `sentence`."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while not (path.exists() and sentence in (text := path.read_text())):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a server (status {process.returncode}) wrote no {sentence!r} to {path.name}")
        time.sleep(0.01)
    return text.strip()
