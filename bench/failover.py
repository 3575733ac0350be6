"""What the death of a server costs: the stall in real processes, and the failure table of PETALS in virtual time.

Real: two servers hold the second half of the 60 M model. At position 128 or 1024 of a session the one that serves it is
killed with SIGKILL and the next token asked for at once; the stall is what this token takes beyond the usual. Beside
it: what a client without fail-over pays at least, a forward of as long a text through the surviving chain (finding the
death out and a new route are not charged to it). The text is one that no server has seen: a client that had kept
nothing, on servers that keep nothing. What beginning again takes where servers' prefix caches hold the text is shown
too. In turns the session has a standby, which had some seconds' time.

Virtual: see bench.failing_swarm.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.failing_swarm import Ends, FailingSwarm, Way, cacheless, ours, recomputing, restarting
from bench.models import llama_60m, llama_four_blocks
from bench.report import Report, bench_arguments
from bench.swarms import LocalSwarm, connected, endpoint_of, load_local, prompt_of, start_servers
from farflung.apps.library import ConnectedModel
from farflung.model.source import ModelSource
from farflung.systems.swarm.config import SessionConfig

POSITIONS = (128, 1024)
NUM_TOKENS = (128, 1024)
FAILURE_RATES = (0.0, 1e-4, 1e-3, 1e-2)
STANDBY_SECONDS = 4.0
"""Between the first token and the others: a standby computes when nobody else asks."""
STANDBY_SHARE_MAX = 0.5
"""Of the stall without a standby, at the longest text."""
NUM_DECODED = 8
"""Tokens before the kill, and after it."""
REPLICATED = "4:8"
GIVE_UP_SECONDS = 1800.0
"""Virtual seconds after which a way that has not finished is given up."""
WAYS: dict[str, Way] = {
    "restart with cache": restarting,
    "restart, text so far in one forward": recomputing,
    "no cache": cacheless,
    "ours": ours,
}
PAPER: dict[str, Sequence[float | None]] = {
    "restart with cache": (17.1, 16.7, 12, 0.18, 15.5, 11.8, 0.48, None),
    "no cache": (3.44, 3.44, 3.44, 3.44, 0.89, 0.89, 0.89, 0.89),
    "ours": (11.4, 11.4, 10.6, 3.38, 10.7, 10.7, 7.76, 2.17),
}
"""Steps/s of PETALS (NeurIPS 2023), Table 1, 128 tokens and then 1024, by failure rate; None: not done in an hour."""


@dataclass(frozen=True)
class Stall:
    """One kill, in seconds."""

    usual: float
    """A token of the undisturbed chain."""
    stalled: float
    """The token asked for at the kill."""
    scratch: float
    """As long a text, seen by no server before, through the surviving chain."""
    again: float
    """The same text once more, of which the surviving servers have parts in their prefix caches."""
    is_exact: bool


def _next(model: Any, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, float]:
    started_at = time.perf_counter()
    with torch.inference_mode():
        token = model(ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    return token, time.perf_counter() - started_at


def kill_at(
    swarm: LocalSwarm, client: ConnectedModel, local: Any, position: int, number: int, wait_seconds: float
) -> Stall:
    """Kill the replica in use when the cache holds `position` tokens, and go on; `wait_seconds` after the first token
    before there are more. `number`: of the kill, so that every one has an unseen text of its own."""
    text = prompt_of(position - NUM_DECODED, client.source.config.vocab_size)
    seconds: list[float] = []
    with client.open_cache(position + 4 * NUM_DECODED) as cache:
        token, _ = _next(client.model, text, cache)
        time.sleep(wait_seconds)
        victim = swarm.at(_endpoint_in_use(client, cache))
        for step in range(2 * NUM_DECODED):
            text = torch.cat([text, token], dim=1)
            if step == NUM_DECODED:
                victim.process.kill()
            token, spent = _next(client.model, token, cache)
            seconds.append(spent)
    victim.process.wait()
    again = _from_the_beginning(client, text[:, : position + 1])
    unseen = prompt_of(position + 1, client.source.config.vocab_size, seed=1 + number)
    scratch = _from_the_beginning(client, unseen)
    prompt = text[:, : position - NUM_DECODED]
    expected = local.generate(prompt, do_sample=False, max_new_tokens=2 * NUM_DECODED)
    usual = statistics.median(seconds[1:NUM_DECODED])
    return Stall(usual, seconds[NUM_DECODED], scratch, again, torch.equal(text, expected))


def _from_the_beginning(client: ConnectedModel, text: torch.Tensor) -> float:
    """Seconds of a new session's first token."""
    with client.open_cache(text.shape[1] + NUM_DECODED) as cache:
        return _next(client.model, text, cache)[1]


def _endpoint_in_use(client: ConnectedModel, cache: Any) -> str:
    """The endpoint of the replica that serves a session."""
    return endpoint_of(client, cache.session.chain.links[-1].peer)


def measure_stalls(report: Report, folder: Path, num_threads: int, num_kills: int) -> None:
    local = load_local(llama_60m())
    rows: list[tuple[object, ...]] = []
    with LocalSwarm(llama_60m(), folder, num_threads) as swarm:
        start_servers(swarm, ["0:4", REPLICATED, REPLICATED])
        alone, standing_by = SessionConfig(), replace(SessionConfig(), is_standby_wanted=True)
        with connected(swarm, alone) as client, connected(swarm, standing_by) as cautious:
            for position in POSITIONS:
                stalls: list[Stall] = []
                with_standby: list[Stall] = []
                for number in range(num_kills):
                    stalls.append(kill_at(swarm, client, local, position, 2 * number, 0.0))
                    swarm.start(REPLICATED).wait_serving()
                    with_standby.append(kill_at(swarm, cautious, local, position, 2 * number + 1, STANDBY_SECONDS))
                    swarm.start(REPLICATED).wait_serving()
                rows += [_judge(report, position, stalls), _judge(report, position, with_standby, " with a standby")]
                _compare(report, position, stalls, with_standby)
    columns = (
        "position",
        "usual token, ms",
        "stall, ms",
        "from scratch, ms",
        "stall/scratch",
        "again, ms",
        "slowest stall, ms",
    )
    report.table("kill -9 of one of two replicas, real processes (medians)", columns, rows)


def _compare(report: Report, position: int, stalls: Sequence[Stall], with_standby: Sequence[Stall]) -> None:
    plain, warm = (statistics.median(each.stalled - each.usual for each in way) for way in (stalls, with_standby))
    limit = STANDBY_SHARE_MAX if position == max(POSITIONS) else 1.0
    text = f"kill at position {position}: stall with a standby as a share of that without"
    report.claim(text, f"at most {limit:g}", f"{warm / plain:.2f} ({warm * 1e3:.0f} ms)", warm <= limit * plain)


def _judge(report: Report, position: int, stalls: Sequence[Stall], way: str = "") -> tuple[object, ...]:
    stall = statistics.median(each.stalled - each.usual for each in stalls)
    scratch = statistics.median(each.scratch - each.usual for each in stalls)
    again = statistics.median(each.again - each.usual for each in stalls)
    ratio = statistics.median((each.stalled - each.usual) / (each.scratch - each.usual) for each in stalls)
    slowest = max(each.stalled - each.usual for each in stalls)
    usual = statistics.median(each.usual for each in stalls)
    text = f"kill at position {position}{way}: stall as a share of a forward from scratch"
    report.claim(text, "below 1", f"{ratio:.2f} ({stall * 1e3:.0f} of {scratch * 1e3:.0f} ms)", ratio < 1)
    is_exact = all(each.is_exact for each in stalls)
    report.claim(
        f"kill at position {position}{way}: same tokens as locally", "yes", "yes" if is_exact else "no", is_exact
    )
    return (f"{position}{way}", usual * 1e3, stall * 1e3, scratch * 1e3, ratio, again * 1e3, slowest * 1e3)


def steps_per_second(
    ends: Ends, way: Way, num_tokens: int, rate: float, num_seeds: int, *, is_silent: bool = False
) -> float | None:
    """Over all seeds; None if one of them was given up. Tokens must be those of an undisturbed run."""
    seconds, num_steps = 0.0, 0
    for seed in range(num_seeds):
        with FailingSwarm(ends, rate, seed, is_silent) as swarm:
            tokens, spent = swarm.run(way(swarm, num_tokens, GIVE_UP_SECONDS))
        if not tokens:
            return None
        if way is not cacheless:
            assert tokens == ends.expected(num_tokens), f"{way.__name__} said something else at rate {rate}"
        num_steps += len(tokens) - (way is not cacheless)
        seconds += spent
    return num_steps / seconds


def measure_table(report: Report, is_quick: bool) -> None:
    ends = Ends(ModelSource.open(str(llama_four_blocks())))
    lengths = NUM_TOKENS[:1] if is_quick else NUM_TOKENS
    rows: list[tuple[object, ...]] = []
    for name, way in WAYS.items():
        measured: list[float | None] = []
        for num_tokens in lengths:
            for rate in FAILURE_RATES:
                is_slow = way in (restarting, cacheless)
                num_seeds = 1 if rate == 0 or (is_slow and (is_quick or num_tokens > 128)) else 3 if is_quick else 5
                measured.append(steps_per_second(ends, way, num_tokens, rate, num_seeds))
        rows.append((f"{name}, virtual time", *map(_shown, measured)))
        if name in PAPER:
            rows.append(
                (f"{name if way is not ours else 'Algorithm 1'}, paper", *map(_shown, PAPER[name][: len(measured)]))
            )
        if way is ours:
            _claim_row(report, lengths, measured)
    silent = [
        steps_per_second(ends, ours, num_tokens, rate, 1 if rate == 0 else 3, is_silent=True)
        for num_tokens in lengths
        for rate in FAILURE_RATES
    ]
    rows.append(("ours, machines lose power without a word", *map(_shown, silent)))
    columns = [f"{num_tokens} tokens, p={rate:g}" for num_tokens in lengths for rate in FAILURE_RATES]
    report.table("steps/s by failure rate per step and server", ("way", *columns), rows)


def _claim_row(report: Report, lengths: Sequence[int], measured: Sequence[float | None]) -> None:
    points = [(num_tokens, rate) for num_tokens in lengths for rate in FAILURE_RATES]
    for (num_tokens, rate), own, theirs in zip(points, measured, PAPER["ours"], strict=False):
        assert own is not None and theirs is not None
        text = f"steps/s, {num_tokens} tokens, failure rate {rate:g}"
        report.claim(text, f"above {theirs:g} (the paper's)", f"{own:.2f}", own > theirs)


def _shown(value: float | None) -> str:
    return "not finished" if value is None else f"{value:.3g}"


def main() -> int:
    parser = bench_arguments("what the death of a server costs")
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {"quick": arguments.quick, "threads": arguments.threads, "give_up_seconds": GIVE_UP_SECONDS}
    report = Report("failover", settings)
    with tempfile.TemporaryDirectory() as folder:
        measure_stalls(report, Path(folder), arguments.threads, 1 if arguments.quick else 5)
    measure_table(report, arguments.quick)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
