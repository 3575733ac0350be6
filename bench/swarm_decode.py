"""What a chain of servers on one machine costs over `generate` in one process: tokens/s, time to start, memory.

One stream of greedy tokens from the same 60 M model (float32): transformers alone, then through 1, 2 and 4 server
processes. Every process has the same number of threads, and at any moment only one of them computes, so all runs have
the same arithmetic to spend. They alternate within one run; a ratio is the
median over rounds of ratios of the round's median tokens, so that what slows a whole round down cancels.

Our blocks and heads also compute faster than transformers' where matrices are read faster by column, which the shares
and added milliseconds contain; what the network alone takes is given apart.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench.models import llama_60m
from bench.report import Report, bench_arguments
from bench.swarms import (
    MEGABYTE,
    LocalSwarm,
    ServerProcess,
    connected,
    decode,
    load_local,
    prompt_of,
    split_blocks,
    start_servers,
    token_seconds,
)
from farflung.apps.library import ConnectedModel
from farflung.model.budget import block_bytes, bytes_per_token
from farflung.model.pool import CAPACITY_TOKENS_MIN
from farflung.model.source import ModelSource
from farflung.systems.swarm.cache import RemoteCache

SHARES_MIN = {1: 0.90, 2: 0.85, 4: 0.75}
"""Tokens/s through so many servers, as a share of the local tokens/s."""
HOP_SECONDS_MAX = 0.0015
MEMORY_BYTES_MAX = 350 * MEGABYTE
PROMPT_TOKENS = 16


def measure_rates(report: Report, models: dict[int, Any], num_rounds: int, num_tokens: int, prompt: Any) -> None:
    """Alternate between local (0 servers) and the swarms; all must say the same."""
    for model in models.values():
        decode(model, prompt, 8)
    rounds: dict[int, list[list[float]]] = {num_servers: [] for num_servers in models}
    said: list[list[int]] = []
    for number in range(num_rounds):
        order = list(models) if number % 2 == 0 else list(reversed(models))
        for num_servers in order:
            clock = decode(models[num_servers], prompt, num_tokens)
            rounds[num_servers].append(token_seconds(clock))
            said.append(clock.tokens)
    medians = {num_servers: [statistics.median(each) for each in rounds[num_servers]] for num_servers in models}
    fastest = {num_servers: _fastest_tenth(rounds[num_servers]) for num_servers in models}
    rows: list[tuple[object, ...]] = []
    for num_servers, measured in medians.items():
        share = statistics.median(local / own for local, own in zip(medians[0], measured, strict=True))
        added = statistics.median(own - local for local, own in zip(medians[0], measured, strict=True))
        per_token, per_hop = statistics.median(measured), added / max(1, num_servers)
        own_fastest = fastest[num_servers]
        fast = (own_fastest * 1e3, fastest[0] / own_fastest, (own_fastest - fastest[0]) / max(1, num_servers) * 1e3)
        rows.append((num_servers or "local", 1 / per_token, per_token * 1e3, share, per_hop * 1e3, *fast))
        if num_servers:
            _claim(report, num_servers, share, per_hop)
    columns = ("tokens/s", "ms/token", "share", "ms/hop", "fast ms/token", "fast share", "fast ms/hop")
    report.table("greedy decode; fast: the fastest tenth of the tokens", ("servers", *columns), rows)
    report.claim("all say the same tokens", "yes", "yes", all(tokens == said[0] for tokens in said))


def measure_network(report: Report, clients: dict[int, ConnectedModel], hidden_size: int, num_steps: int) -> None:
    """Of single-token steps through the blocks alone: the whole time less what the servers computed."""
    hidden_B1H = torch.full((1, 1, hidden_size), 0.02)
    rows: list[tuple[object, ...]] = []
    for num_servers, client in clients.items():
        with client.open_cache(num_steps) as cache:
            assert isinstance(cache, RemoteCache)
            seconds: list[float] = []
            for _ in range(num_steps):
                started_at = time.perf_counter()
                cache.step(hidden_B1H, None, None)
                seconds.append(time.perf_counter() - started_at - cache.session.times.compute_seconds)
        fast = statistics.quantiles(seconds, n=10)[0]
        rows.append((num_servers, statistics.median(seconds) / num_servers * 1e3, fast / num_servers * 1e3))
    columns = ("servers", "ms/hop, median", "ms/hop, fastest tenth")
    report.table("a step less the servers' computing: network, queues, serialization", columns, rows)


def _claim(report: Report, num_servers: int, share: float, per_hop: float) -> None:
    target = SHARES_MIN[num_servers]
    text = f"{num_servers} server(s): tokens/s as a share of local generate"
    report.claim(text, f"at least {target:.2f}", f"{share:.3f}", share >= target)
    text = f"{num_servers} server(s): added ms per hop and token"
    report.claim(text, "at most 1.5", f"{per_hop * 1e3:.2f}", per_hop <= HOP_SECONDS_MAX)


def _fastest_tenth(rounds: list[list[float]]) -> float:
    """The tenth percentile: what a token takes when nobody else wants the processor."""
    return statistics.quantiles([seconds for each in rounds for seconds in each], n=10)[0]


def measure_memory(report: Report, server: ServerProcess, source: ModelSource, num_cache_positions: int) -> None:
    """One process that holds all blocks, beyond its weights and the cache of the session just run."""
    weights = source.num_blocks * block_bytes(source, torch.float32)
    cache = source.num_blocks * bytes_per_token(source, torch.float32) * num_cache_positions
    resident, share = server.memory_bytes()
    rows = [
        ("resident (RSS)", resident / MEGABYTE, (resident - weights - cache) / MEGABYTE),
        ("proportional share (PSS)", share / MEGABYTE, (share - weights - cache) / MEGABYTE),
    ]
    report.table(
        f"memory of one server with {weights / MEGABYTE:.0f} MB of weights and {cache / MEGABYTE:.0f} MB of cache",
        ("measure", "MB", "MB beyond weights and cache"),
        rows,
    )
    beyond = resident - weights - cache
    text = "memory of a server process beyond weights and cache (RSS, MB)"
    report.claim(text, "at most 350", f"{beyond / MEGABYTE:.0f}", beyond <= MEMORY_BYTES_MAX)


def measure(report: Report, folder: Path, num_threads: int, is_quick: bool) -> None:
    path = llama_60m()
    source = ModelSource.open(str(path))
    prompt = prompt_of(PROMPT_TOKENS, source.config.vocab_size)
    num_tokens, num_rounds = (12, 6) if is_quick else (24, 30)
    models: dict[int, Any] = {0: load_local(path)}
    rows: list[tuple[object, ...]] = []
    with ExitStack() as stack:
        swarms: dict[int, LocalSwarm] = {}
        clients: dict[int, ConnectedModel] = {}
        for num_servers in SHARES_MIN:
            home = folder / str(num_servers)
            home.mkdir()
            swarm = swarms[num_servers] = stack.enter_context(LocalSwarm(path, home, num_threads))
            start_servers(swarm, split_blocks(source.num_blocks, num_servers))
            serving = time.perf_counter() - swarm.servers[0].started_at
            client = stack.enter_context(connected(swarm))
            clients[num_servers], models[num_servers] = client, client.model
            clock = decode(client.model, prompt, 2)
            first = clock.times[1] - swarm.servers[0].started_at
            rows.append((num_servers, serving, first))
        columns = ("servers", "all serve after, s", "first token after, s")
        report.table("from the start of the server processes, client running", columns, rows)
        measure_rates(report, models, num_rounds, num_tokens, prompt)
        measure_network(report, clients, source.hidden_size, num_rounds * 10)
        positions = CAPACITY_TOKENS_MIN
        measure_memory(report, swarms[1].servers[0], source, positions)


def main() -> int:
    parser = bench_arguments("decoding through server processes against local generate")
    parser.add_argument("--threads", type=int, default=1, help="of every process, the local run included")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = Report("swarm_decode", {"quick": arguments.quick, "threads": arguments.threads, "model": "llama_60m"})
    with tempfile.TemporaryDirectory() as folder:
        measure(report, Path(folder), arguments.threads, arguments.quick)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
