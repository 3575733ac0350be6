"""Time to the first token for a long system prompt that others have sent before, through a server process.

Each of several users asks with the same 2,000 tokens followed by a few of their own; the first to ask pays for them.
Cold prompts differ in every round. Seconds are the client's own, from sending the prompt to the token; processor
seconds are the server's, which say more where others use the machine.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from bench.models import llama_wide
from bench.report import Report, bench_arguments
from bench.swarms import LocalSwarm, connected, prompt_of, start_servers
from farflung.apps.library import ConnectedModel
from farflung.model.generator import GeneratedToken, GenerationRequest, ModelGenerator
from farflung.model.source import ModelSource

GAIN_MIN = 10.0
SHARED_TOKENS = 2000
OWN_TOKENS = 12
NUM_WARM = 4


def first_token(client: ConnectedModel, server: psutil.Process, prompt: list[int]) -> tuple[float, float, int]:
    """(seconds, the server's processor seconds, the token)."""
    generator = ModelGenerator(client.model, open_cache=client.open_cache)
    before, started_at = server.cpu_times(), time.perf_counter()
    (token,) = generator.stream(GenerationRequest(prompt=tuple(prompt), num_tokens_max=1))
    seconds, after = time.perf_counter() - started_at, server.cpu_times()
    assert isinstance(token, GeneratedToken)
    return seconds, after.user + after.system - before.user - before.system, token.scored.token


def measure(report: Report, folder: Path, num_threads: int, is_quick: bool) -> None:
    path = llama_wide()
    source = ModelSource.open(str(path))
    rows: list[tuple[object, ...]] = []
    gains: list[tuple[float, float]] = []
    is_same = True
    with LocalSwarm(path, folder, num_threads) as swarm:
        start_servers(swarm, [f"0:{source.num_blocks}"])
        server = psutil.Process(swarm.servers[0].process.pid)
        with connected(swarm) as client:
            first_token(client, server, [1, 2, 3])
            for number in range(1 if is_quick else 3):
                seed = 1000 * (number + 1)
                shared = prompt_of(SHARED_TOKENS, source.config.vocab_size, seed)[0].tolist()
                asked = [
                    shared + prompt_of(OWN_TOKENS, source.config.vocab_size, seed + user)[0].tolist()
                    for user in range(NUM_WARM + 1)
                ]
                cold, *warm = [first_token(client, server, prompt) for prompt in asked]
                again = first_token(client, server, asked[0])
                is_same &= again[2] == cold[2]
                medians = [statistics.median(each[index] for each in warm) for index in (0, 1)]
                gains.append((cold[0] / medians[0], cold[1] / medians[1]))
                rows.append((number + 1, cold[0], medians[0], cold[1], medians[1], *gains[-1]))
    columns = (
        "round",
        "cold, s",
        "warm, s",
        "cold, server's processor s",
        "warm, the same",
        "gain",
        "of the processor",
    )
    report.table(f"first token after {SHARED_TOKENS} shared and {OWN_TOKENS} own tokens", columns, rows)
    gain, processor_gain = (statistics.median(each[index] for each in gains) for index in (0, 1))
    report.claim("time to the first token, cold over warm", f"at least {GAIN_MIN:.0f}", f"{gain:.1f}", gain >= GAIN_MIN)
    text = "the server's processor time, cold over warm"
    report.claim(text, f"at least {GAIN_MIN:.0f}", f"{processor_gain:.1f}", processor_gain >= GAIN_MIN)
    report.claim("the same prompt gives the same token, cold and warm", "yes", "yes" if is_same else "no", is_same)


def main() -> int:
    parser = bench_arguments("time to the first token for a shared system prompt, cold and warm")
    parser.add_argument("--threads", type=int, default=1, help="of the server and the client")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {"quick": arguments.quick, "threads": arguments.threads, "model": "llama_wide"}
    report = Report("prefix_cache", settings)
    with tempfile.TemporaryDirectory() as folder:
        measure(report, Path(folder), arguments.threads, arguments.quick)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
