"""Decoding over long links against the floor that distance and arithmetic set: tokens/s with and without push.

Servers of the 60 M model on this machine, each reached through a proxy process that delays and limits its link
(client to server and server to server alike). With push a token passes one link more than there are servers; without,
it returns to the client after every server. The floor of a chain is the sum of the one-way delays on its way, plus the
time that the same token takes in local `generate`: what no protocol can go below. Both are measured in the same rounds
as the swarm, the delays with plain TCP over a proxy of the same kind and as many bytes as a hidden state.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.models import llama_60m
from bench.report import Report, bench_arguments
from bench.swarms import (
    BarePing,
    Links,
    LocalSwarm,
    connected,
    decode,
    load_local,
    prompt_of,
    split_blocks,
    start_servers,
    token_seconds,
)
from farflung.model.source import ModelSource
from farflung.systems.swarm.config import SessionConfig

ROUND_TRIPS_SECONDS = (0.005, 0.050, 0.100)
BYTES_PER_SECOND = 100e6 / 8
SHARE_MIN = 0.9
"""Of the floor's tokens/s, with push."""
PROMPT_TOKENS = 16
PINGS = 5
WAYS = {"push": SessionConfig(), "no push": replace(SessionConfig(), is_push_wanted=False)}


def num_links(way: str, num_servers: int) -> int:
    """Links that one token passes on its way."""
    return num_servers + 1 if way == "push" else 2 * num_servers


def measure_chain(
    report: Report, local: Any, folder: Path, num_servers: int, round_trip_seconds: float, num_rounds: int, num_new: int
) -> list[tuple[object, ...]]:
    """Alternate between local, push and no push on one chain; the rows of its table."""
    path = llama_60m()
    links = Links(one_way_seconds=round_trip_seconds / 2, bytes_per_second=BYTES_PER_SECOND)
    source = ModelSource.open(str(path))
    prompt = prompt_of(PROMPT_TOKENS, source.config.vocab_size)
    with ExitStack() as stack:
        swarm = stack.enter_context(LocalSwarm(path, folder, torch.get_num_threads(), links))
        start_servers(swarm, split_blocks(source.num_blocks, num_servers))
        ping = BarePing(swarm, links, 4 * source.hidden_size)
        models: dict[str, Any] = {"local": local}
        models |= {way: stack.enter_context(connected(swarm, config)).model for way, config in WAYS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        delays: list[float] = []
        said: list[list[int]] = []
        for model in models.values():
            decode(model, prompt, 4)
        for _ in range(num_rounds):
            delays.append(statistics.median(ping.one_way_seconds() for _ in range(PINGS)))
            for name, model in models.items():
                clock = decode(model, prompt, num_new)
                seconds[name].append(statistics.median(token_seconds(clock)))
                said.append(clock.tokens)
    title = f"{num_servers} servers, {round_trip_seconds * 1e3:g} ms round trip"
    rows: list[tuple[object, ...]] = []
    for way in WAYS:
        floors = [
            num_links(way, num_servers) * delay + compute
            for delay, compute in zip(delays, seconds["local"], strict=True)
        ]
        share = statistics.median(floor / own for floor, own in zip(floors, seconds[way], strict=True))
        above = statistics.median(own - floor for floor, own in zip(floors, seconds[way], strict=True))
        rates = (1 / statistics.median(seconds[way]), 1 / statistics.median(floors))
        parts = (statistics.median(delays) * 1e3, statistics.median(seconds["local"]) * 1e3)
        rows.append((title, way, *rates, share, num_links(way, num_servers), *parts, above * 1e3))
        if way == "push":
            text = f"{title}: tokens/s as a share of the floor's"
            report.claim(text, f"at least {SHARE_MIN:.2f}", f"{share:.3f}", share >= SHARE_MIN)
    same = all(tokens == said[0] for tokens in said)
    report.claim(f"{title}: the same tokens as locally", "yes", "yes" if same else "no", same)
    return rows


def main() -> int:
    parser = bench_arguments("decoding over long links against the floor")
    parser.add_argument("--threads", type=int, default=1, help="of every process, the local run included")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {"round_trips_seconds": ROUND_TRIPS_SECONDS, "bytes_per_second": BYTES_PER_SECOND}
    report = Report("swarm_wan", {"quick": arguments.quick, "threads": arguments.threads, **settings})
    local = load_local(llama_60m())
    num_rounds, num_new = (3, 8) if arguments.quick else (5, 16)
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        for num_servers in (2,) if arguments.quick else (2, 3):
            for round_trip_seconds in ROUND_TRIPS_SECONDS:
                home = Path(folder) / f"{num_servers}-{round_trip_seconds}"
                home.mkdir()
                rows += measure_chain(report, local, home, num_servers, round_trip_seconds, num_rounds, num_new)
    columns = ("tokens/s", "floor tokens/s", "share", "links", "one way, ms", "compute, ms", "above the floor, ms")
    report.table("greedy decode over links of 100 Mbit/s", ("chain", "way", *columns), rows)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
