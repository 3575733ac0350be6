"""A model too big for one machine: read from disk for every token, or held together by four servers far apart.

One process is given a tenth of the model's bytes as memory and reads the rest from this machine's disk at every step
(accelerate's disk offload, all cores; the weights' pages are dropped from the cache before each token, as they would be
where the memory is not there). Four server processes hold a fourth each, and every link of the chain is 100 Mbit/s with
100 ms from end to end and back. Both say the same tokens, in turns.

What the servers save grows with the model: distance costs the same for all sizes, and the disk costs more the more it
is to give. The whole run wants 13 GB of disk and 18 GB of memory; the quick one shows its 1.8 GB model only.

    python -m bench.offloading [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench.models import llama_large
from bench.report import Report, bench_arguments
from bench.swarms import Links, LocalSwarm, connected, decode, prompt_of, split_blocks, start_servers, token_seconds
from farflung.model.source import ModelSource

NUM_SERVERS = 4
NUM_BLOCKS, NUM_BLOCKS_QUICK = 60, 8
MEMORY_SHARE = 0.1
"""Of the model's bytes, given to the process that offloads."""
LINKS = Links(one_way_seconds=0.050, bytes_per_second=100e6 / 8)
RATIO_MIN = 10.0
PROMPT_TOKENS = 16
GIGABYTE = 1e9


class Offloaded:
    """The process that reads from disk."""

    def __init__(self, model: Path, memory_bytes: int, num_threads: int) -> None:
        program = [sys.executable, "-m", "bench.offloading_ends", str(model), str(memory_bytes), str(num_threads)]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.places = self._answer()

    def __enter__(self) -> Offloaded:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()

    def decode(self, prompt: torch.Tensor, num_new: int) -> dict[str, Any]:
        """Greedy continuation: `tokens`, the `seconds` of each, and `peak_bytes` of the process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt[0].tolist(), "num_new": num_new}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def measure(report: Report, model: Path, num_rounds: int, num_new: int) -> None:
    """Both in turns; a round is `num_new` tokens of each, whose first, the prompt's, does not count."""
    source = ModelSource.open(str(model))
    prompt = prompt_of(PROMPT_TOKENS, source.config.vocab_size)
    model_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    memory_bytes = int(MEMORY_SHARE * model_bytes)
    num_cores = os.cpu_count() or 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        swarm = stack.enter_context(LocalSwarm(model, folder, num_cores, LINKS))
        start_servers(swarm, split_blocks(source.num_blocks, NUM_SERVERS))
        far = stack.enter_context(connected(swarm)).model
        near = stack.enter_context(Offloaded(model, memory_bytes, num_cores))
        seconds: dict[str, list[float]] = {"offloaded": [], "servers": []}
        ratios: list[float] = []
        peak_bytes, is_same = 0, True
        decode(far, prompt, 2)
        for _ in range(num_rounds):
            told = near.decode(prompt, num_new)
            clock = decode(far, prompt, num_new)
            seconds["offloaded"].append(statistics.median(told["seconds"][1:]))
            seconds["servers"].append(statistics.median(token_seconds(clock)))
            ratios.append(seconds["offloaded"][-1] / seconds["servers"][-1])
            peak_bytes = told["peak_bytes"]
            is_same = is_same and told["tokens"] == clock.tokens[PROMPT_TOKENS:]
        server_bytes = max(server.memory_bytes()[0] for server in swarm.servers)
    rows = [
        ("read from disk", 1 / statistics.median(seconds["offloaded"]), peak_bytes / GIGABYTE),
        (f"{NUM_SERVERS} servers", 1 / statistics.median(seconds["servers"]), server_bytes / GIGABYTE),
    ]
    size = f"{model_bytes / GIGABYTE:.1f} GB of weights, {near.places['num_on_disk']} of {near.places['num_modules']}"
    report.table(f"{size} modules on disk", ("way", "tokens/s", "most memory of a process, GB"), rows)
    ratio = statistics.median(ratios)
    report.claim("tokens/s, servers to disk", f"at least {RATIO_MIN:g}", f"{ratio:.1f}", ratio >= RATIO_MIN)
    report.claim("the same tokens", "yes", "yes" if is_same else "no", is_same)
    small = max(peak_bytes, server_bytes) / model_bytes
    report.claim("most memory of a process, in models", "at most 0.5", f"{small:.2f}", small <= 0.5)


def main() -> int:
    arguments = bench_arguments("a model read from disk against one that four far servers hold").parse_args()
    settings = {"memory_share": MEMORY_SHARE, "num_servers": NUM_SERVERS, "round_trip_seconds": 0.1, "mbit_s": 100}
    report = Report("offloading", {"quick": arguments.quick, **settings})
    num_blocks, num_rounds, num_new = (NUM_BLOCKS_QUICK, 2, 4) if arguments.quick else (NUM_BLOCKS, 3, 5)
    measure(report, llama_large(num_blocks), num_rounds, num_new)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
