"""Mixed load over HTTP and from Python while servers are killed and added: nothing leaks, is wrong, or gets stuck.

Real processes on this machine, for half an hour: an interface with standbys, a server that is never killed (it founded
the swarm), and others of which one is killed with SIGKILL, or one more started, every 20 seconds, so that each half of
the model keeps a holder. Users ask for completions, greedy and drawn with a seed, whole and streamed, and give some up;
programs generate with beams and by lookup. Every answer is compared with what the same code says over the whole model
in this process.
"""

from __future__ import annotations

import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

import httpx
import numpy as np
import psutil
import torch

from bench.models import llama_with_tokenizer
from bench.report import Report, bench_arguments
from bench.soak_users import Crowd, HttpUser, PythonUser, Seen, answers_here, requests_of
from bench.swarms import (
    FARFLUNG,
    MEGABYTE,
    LocalSwarm,
    ServerProcess,
    connected,
    endpoint_of,
    load_local,
    start_servers,
)
from farflung.apps.library import ConnectedModel
from farflung.model.source import ModelSource
from farflung.systems.swarm.config import SessionConfig

HALVES = ("0:2", "2:4")
NUM_USERS, NUM_PROGRAMS = 6, 2
PERIOD_SECONDS, PERIOD_SECONDS_QUICK = 20.0, 4.0
MINUTES_QUICK = 0.4
FREE_SECONDS_MAX = 90.0
"""In which a server asks after the sessions of which it never heard that they are over, with time to spare."""
GROWTH_MAX = 0.05


@dataclass
class Fates:
    """Kills and starts servers in turns; the first server is left alone."""

    swarm: LocalSwarm
    client: ConnectedModel
    blocks: dict[str, str]
    """Of each endpoint."""
    stream: random.Random = field(default_factory=lambda: random.Random("fates"))
    num_kills: int = 0
    num_starts: int = 0

    def start(self, blocks: str) -> ServerProcess:
        server = self.swarm.start(blocks)
        self.blocks[server.endpoint] = blocks
        return server

    def strike(self) -> None:
        """Start what is missing, else kill a server whose blocks another one serves too."""
        alive = [server for server in self.swarm.servers if server.process.poll() is None]
        for blocks in HALVES:
            if sum(self.blocks[server.endpoint] == blocks for server in alive) < 2:
                self.start(blocks)
                self.num_starts += 1
                return
        serving = {endpoint_of(self.client, peer) for peer in self.client.view.servers()}
        victims = [server for server in alive[1:] if self._has_other(server, serving)]
        if victims:
            victim = self.stream.choice(victims)
            victim.process.kill()
            victim.process.wait()
            self.num_kills += 1

    def _has_other(self, server: ServerProcess, serving: set[str]) -> bool:
        others = {each.endpoint for each in self.swarm.servers if each.process.poll() is None} - {server.endpoint}
        return any(self.blocks[other] == self.blocks[server.endpoint] for other in others & serving)


@dataclass
class Memory:
    """Bytes that processes have of their own, looked at again and again."""

    processes: dict[str, psutil.Process]
    samples: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def look(self) -> None:
        for name, process in self.processes.items():
            self.samples.setdefault(name, []).append(process.memory_full_info().uss / MEGABYTE)

    def growth(self, name: str) -> tuple[float, float]:
        """Medians, in MB, of the second fifth of the run (the first warms up) and of the last."""
        samples = self.samples[name]
        fifth = max(1, len(samples) // 5)
        return float(np.median(samples[fifth : 2 * fifth])), float(np.median(samples[-fifth:]))


@dataclass
class Interface:
    """A process of `farflung api`."""

    process: Popen[bytes]
    url: str

    @classmethod
    def start(cls, swarm: LocalSwarm) -> Interface:
        log = swarm.folder / "api.log"
        options = ["--port", "0", "--sessions", "16", "--waiting", "64", "--standby", "--resume-seconds", "2"]
        command = [*FARFLUNG, "api", str(swarm.model), "--join", swarm.ticket, *options]
        with log.open("wb") as output:
            process = Popen([*command, "--threads", str(swarm.num_threads)], stdout=output)
        deadline = time.monotonic() + 300
        while (found := re.search(r"http://\S+", log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the interface did not start: {log.read_text()}")
            time.sleep(0.05)
        return cls(process, found[0].removesuffix("/v1"))

    def num_reroutes(self) -> float:
        """Servers that its sessions replaced."""
        found = re.search(r"^farflung_reroutes_total (\S+)", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        return float(found[1]) if found is not None else 0.0


def seconds_until_free(client: ConnectedModel) -> float | None:
    """How long servers still hold anything; None: longer than they may."""
    started_at = time.monotonic()
    while time.monotonic() < started_at + FREE_SECONDS_MAX:
        infos = client.view.servers().values()
        if all(info.num_sessions == 0 and info.cache_tokens_left == info.cache_tokens_max for info in infos):
            return time.monotonic() - started_at
        time.sleep(0.2)
    return None


def go_on(fates: Fates, memory: Memory, seconds: float, period_seconds: float) -> None:
    """Let fate strike every period, and look at memory in between."""
    ends_at = time.monotonic() + seconds
    strikes_at = time.monotonic() + period_seconds
    while (now := time.monotonic()) < ends_at:
        if now >= strikes_at:
            strikes_at += period_seconds
            fates.strike()
        memory.look()
        time.sleep(min(5.0, period_seconds / 4))


def run(report: Report, folder: Path, seconds: float, period_seconds: float, num_threads: int) -> None:
    source, whole = ModelSource.open(str(llama_with_tokenizer())), load_local(llama_with_tokenizer())
    bodies, seen = requests_of(whole.config.vocab_size, source.name, 24), Seen()
    expected = answers_here(source, whole, bodies)
    with LocalSwarm(llama_with_tokenizer(), folder, num_threads) as swarm:
        ranges = [blocks for blocks in HALVES for _ in range(2)]
        start_servers(swarm, ranges)
        blocks_of = {server.endpoint: blocks for server, blocks in zip(swarm.servers, ranges, strict=True)}
        interface = Interface.start(swarm)
        with connected(swarm, SessionConfig(is_standby_wanted=True)) as client:
            fates = Fates(swarm, client, blocks_of)
            pids = {
                "interface": interface.process.pid,
                "server never killed": swarm.servers[0].process.pid,
                "programs": os.getpid(),
            }
            memory = Memory({name: psutil.Process(pid) for name, pid in pids.items()})
            asks = [HttpUser(interface.url, bodies, expected, seen, n).ask for n in range(NUM_USERS)]
            asks += [PythonUser(client.model, whole, bodies, seen, n).ask for n in range(NUM_PROGRAMS)]
            crowd = Crowd(asks, seen)
            crowd.begin()
            go_on(fates, memory, seconds, period_seconds)
            crowd.end()
            free_seconds = seconds_until_free(client)
        num_reroutes = interface.num_reroutes()
        interface.process.terminate()
        interface.process.wait(30)
    show(report, seen, memory, fates, num_reroutes)
    judge(report, seen, memory, free_seconds)


def show(report: Report, seen: Seen, memory: Memory, fates: Fates, num_reroutes: float) -> None:
    rows: list[Sequence[object]] = [(what, number) for what, number in sorted(seen.counts.items())]
    rows += [("servers killed", fates.num_kills), ("servers started", fates.num_starts)]
    rows += [("servers replaced under sessions of the interface", int(num_reroutes))]
    report.table("What happened", ("what", "number"), rows)
    times = {"to the first token": seen.first_seconds, "between tokens": seen.between_seconds}
    shares = (50, 99, 100)
    rows = [
        (what, len(all_), *(1e3 * float(np.percentile(all_, share)) for share in shares))
        for what, all_ in times.items()
    ]
    report.table("Latencies of streams, ms", ("time", "number", "p50", "p99", "slowest"), rows)
    report.table(
        "Memory of their own, MB",
        ("process", "after warming up", "at the end"),
        [(name, *memory.growth(name)) for name in memory.samples],
    )
    for sentence in seen.problems[:20]:
        report.console.print(sentence)


def judge(report: Report, seen: Seen, memory: Memory, free_seconds: float | None) -> None:
    num_checked = seen.counts["greedy answers"] + seen.counts["drawn answers"] + seen.counts["programs' answers"]
    num_wrong, num_stuck, num_failed = (seen.counts[kind] for kind in ("wrong", "stuck", "failed"))
    report.claim("answers that differ from those of one machine", 0, f"{num_wrong} of {num_checked}", num_wrong == 0)
    report.claim("requests that got stuck", 0, num_stuck, num_stuck == 0)
    report.claim("requests that failed", 0, num_failed, num_failed == 0)
    for name in memory.samples:
        early, late = memory.growth(name)
        growth = late / early - 1
        target = f"at most {GROWTH_MAX:.0%}"
        report.claim(f"growth of memory after warming up: {name}", target, f"{growth:+.1%}", growth <= GROWTH_MAX)
    freed = "never" if free_seconds is None else f"{free_seconds:.0f} s"
    report.claim(
        "servers hold no session after the end", f"within {FREE_SECONDS_MAX:g} s", freed, free_seconds is not None
    )


def main() -> int:
    parser = bench_arguments("mixed load while servers are killed and added")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    minutes = MINUTES_QUICK if arguments.quick else arguments.minutes
    period_seconds = PERIOD_SECONDS_QUICK if arguments.quick else PERIOD_SECONDS
    settings = {"minutes": minutes, "period_seconds": period_seconds, "users": NUM_USERS, "programs": NUM_PROGRAMS}
    report = Report("soak", settings)
    with tempfile.TemporaryDirectory() as folder:
        run(report, Path(folder), 60 * minutes, period_seconds, arguments.threads)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
