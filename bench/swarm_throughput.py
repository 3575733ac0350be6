"""Tokens/s of many clients at once through one and two servers, against the same servers one session after another,
and against transformers' own continuous batching in one process.

Every client decodes greedily, with a prompt of its own, as the HTTP interface would (`ModelGenerator`). Processes have
the same number of threads. On a machine that others use, seconds say little: the claims are on processor time that a
token costs the processes that compute blocks, which is what limits a server; seconds are in the tables. Clients hold
the head, so its cost is theirs; the model has a small one, as large ones have next to their blocks. What rows together
save depends on the processor: with `--dtype bfloat16` one that multiplies bfloat16 matrices in hardware pays for eight
rows what it pays for one, as accelerators do; in float32 it does not.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from bench.models import llama_wide
from bench.report import Report, bench_arguments
from bench.swarms import LocalSwarm, connected, load_local, prompt_of, split_blocks, start_servers
from farflung.apps.library import ConnectedModel
from farflung.model.generator import GeneratedToken, GenerationRequest, ModelGenerator
from farflung.model.sample import Sampling
from farflung.model.source import ModelSource

GAIN_MIN = 4.0
"""Of 8 clients with batching, over the same server without."""
SHARE_MIN = 0.9
"""Of transformers' continuous batching, by one server."""
GAP_MAX = 0.1
"""Standard deviations of a step's logits: what bfloat16 rounds in as many blocks."""
PROMPT_TOKENS = 8
CLIENTS = (1, 8, 32)
GREEDY = Sampling(temperature=0)
WAYS = {"batched": [], "batched, packed": ["--packed"], "one by one": ["--batch-sessions", "1"]}
"""Of serving, with the options of `farflung serve`."""


@dataclass(frozen=True)
class Measured:
    """One run of some clients."""

    num_tokens: int
    seconds: float
    computing_seconds: float
    """Processor time of the processes that compute blocks."""
    client_seconds: float
    """Processor time of the process with all clients; 0 where there is no other."""
    asked: list[list[int]]
    said: list[list[int]]

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def milliseconds_per_token(self) -> float:
        return 1e3 * self.computing_seconds / self.num_tokens


Run = Callable[[list[list[int]], int], Measured]


def through(client: ConnectedModel, swarm: LocalSwarm) -> Run:
    """Prompts continued by one thread each, through a swarm."""
    servers = [psutil.Process(server.process.pid) for server in swarm.servers]
    generator = ModelGenerator(client.model, open_cache=client.open_cache)

    def run(prompts: list[list[int]], num_tokens: int) -> Measured:
        said: list[list[int]] = [[] for _ in prompts]
        starts = threading.Barrier(len(prompts) + 1)

        def decode(number: int) -> None:
            request = GenerationRequest(prompt=tuple(prompts[number]), num_tokens_max=num_tokens, sampling=GREEDY)
            starts.wait()
            for token in generator.stream(request):
                assert isinstance(token, GeneratedToken)
                said[number].append(token.scored.token)

        threads = [threading.Thread(target=decode, args=(number,)) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        before, own = sum(map(_processor_seconds, servers)), time.process_time()
        started_at = time.perf_counter()
        starts.wait()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started_at
        computing = sum(map(_processor_seconds, servers)) - before
        return Measured(sum(map(len, said)), seconds, computing, time.process_time() - own, prompts, said)

    return run


def continuous(model: Any) -> Run:
    """The same by transformers in this process."""

    def run(prompts: list[list[int]], num_tokens: int) -> Measured:
        config = GenerationConfig(max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
        limits = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=1024, page_size=256)
        before, started_at = time.process_time(), time.perf_counter()
        outputs = model.generate_batch(prompts, config, continuous_batching_config=limits)
        seconds = time.perf_counter() - started_at
        said = [list(outputs[key].generated_tokens) for key in sorted(outputs, key=_number)]
        return Measured(sum(map(len, said)), seconds, time.process_time() - before, 0.0, prompts, said)

    return run


def _number(request: str) -> int:
    return int(request.rsplit("_", 1)[-1])


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def measure(report: Report, folder: Path, num_threads: int, dtype: str, is_quick: bool) -> None:
    path = llama_wide()
    source = ModelSource.open(str(path))
    num_tokens, num_rounds = (16, 1) if is_quick else (32, 3)
    clients = (1, 8) if is_quick else CLIENTS
    with ExitStack() as stack:
        runs: dict[str, Run] = {}
        for num_servers in (1,) if is_quick else (1, 2):
            for name, options in WAYS.items():
                options = [*options, "--dtype", dtype]
                home = folder / f"{num_servers}-{name}"
                home.mkdir()
                swarm = stack.enter_context(LocalSwarm(path, home, num_threads, options=options))
                start_servers(swarm, split_blocks(source.num_blocks, num_servers))
                client = stack.enter_context(connected(swarm, dtype=getattr(torch, dtype)))
                runs[f"{num_servers} server(s), {name}"] = through(client, swarm)
        runs["transformers, generate_batch"] = continuous(load_local(path, getattr(torch, dtype)))
        vocabulary = source.config.vocab_size
        measured: dict[tuple[str, int], list[Measured]] = {}
        for number in range(num_rounds + 1):  # the first warms up
            for num_clients in clients:
                seeds = [number * 1000 + index for index in range(num_clients)]
                prompts = [prompt_of(PROMPT_TOKENS, vocabulary, seed)[0].tolist() for seed in seeds]
                for name, run in runs.items():
                    if number or num_clients == clients[0]:
                        measured.setdefault((name, num_clients), []).append(run(prompts, num_tokens))
    _report(report, measured, clients)
    local = None if dtype == "float32" else load_local(path)
    _claim_same_words(report, {name: each for (name, number), each in measured.items() if number == 8}, local)


def _report(report: Report, measured: dict[tuple[str, int], list[Measured]], clients: tuple[int, ...]) -> None:
    rows: list[tuple[object, ...]] = []
    costs: dict[tuple[str, int], float] = {}
    for (name, num_clients), each in measured.items():
        newest = each[1:] if num_clients == clients[0] else each
        costs[name, num_clients] = statistics.median(one.milliseconds_per_token for one in newest)
        rate = statistics.median(one.tokens_per_second for one in newest)
        own = statistics.median(1e3 * one.client_seconds / one.num_tokens for one in newest)
        rows.append((name, num_clients, rate, costs[name, num_clients], own))
    columns = ("what", "clients", "tokens/s", "computing, processor ms/token", "clients, processor ms/token")
    report.table("aggregate decoding", columns, rows)
    for way in ("batched", "batched, packed"):
        gain = costs["1 server(s), one by one", 8] / costs[f"1 server(s), {way}", 8]
        text = f"8 clients, one server, {way}: tokens per processor second of the server, over one by one"
        report.claim(text, f"at least {GAIN_MIN}", f"{gain:.2f}", gain >= GAIN_MIN)
        share = costs["transformers, generate_batch", 8] / costs[f"1 server(s), {way}", 8]
        text = f"8 clients, one server, {way}: tokens per processor second, as a share of generate_batch's"
        report.claim(text, f"at least {SHARE_MIN}", f"{share:.2f}", share >= SHARE_MIN)


def _claim_same_words(report: Report, measured: dict[str, list[Measured]], local: Any) -> None:
    """All ways of computing continue the same prompts in the same words; in bfloat16, but for what rounds to a tie.

    `local`: the model in float32, which says how far apart two words are; None: words must be the same.
    """
    theirs = measured["transformers, generate_batch"]
    expected = [words for one in theirs for words in one.said]
    asked = [prompt for one in theirs for prompt in one.asked]
    for name, each in measured.items():
        said = [words for one in each for words in one.said]
        num_same = sum(own == words for own, words in zip(said, expected, strict=True))
        text = f"{name}: answers that are those of generate_batch"
        if local is None:
            report.claim(text, len(expected), num_same, num_same == len(expected))
            continue
        gap = max(_gap(local, *each) for each in zip(asked, said, expected, strict=True))
        told = f"{num_same} of {len(expected)}; {gap:.2f} standard deviations"
        report.claim(f"{text}; and how far apart the first others are", f"at most {GAP_MAX}", told, gap <= GAP_MAX)


def _gap(local: Any, prompt: list[int], own: list[int], other: list[int]) -> float:
    """Between the logits of the first two words that differ, in standard deviations of all logits; 0: none differ."""
    place = next((place for place, (a, b) in enumerate(zip(own, other, strict=True)) if a != b), None)
    if place is None:
        return 0.0
    with torch.inference_mode():
        logits = local(torch.tensor([prompt + own[:place]])).logits[0, -1]
    return abs(float(logits[own[place]] - logits[other[place]])) / float(logits.std())


def main() -> int:
    parser = bench_arguments("many clients at once through one and two servers")
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and activations"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {"quick": arguments.quick, "threads": arguments.threads, "dtype": arguments.dtype, "model": "llama_wide"}
    report = Report("swarm_throughput", settings)
    with tempfile.TemporaryDirectory() as folder:
        measure(report, Path(folder), arguments.threads, arguments.dtype, arguments.quick)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
