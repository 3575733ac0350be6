"""ECHO's two protocols by real processes: a trainer, and two rollout workers behind a link of 20 Mbit/s and a delay.

`farflung align` runs as a user starts it, sampling and training in one process as the baseline; the link is a proxy
that delays and limits what passes. Shown are seconds a step once the first steps are made, beside those of the same
run in virtual time (`bench.echo_convergence`), and how good the policies are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.alignment_task import ANSWERS_PER_PROMPT, OPTIMIZER, PROMPTS_PER_STEP
from bench.report import Report, bench_arguments
from farflung.apps.align.addition import ANSWER_TOKENS

RUN = """
run = {{ name = "real", folder = "{folder}/run", is_shaped = true, seed = {seed} }}
regions = {regions}
links = {links}
model = {{ device = "cpu" }}
logging = {{ every_seconds = 0.5, tensorboard = false }}
sync = {{ mode = "{mode}", staleness_max = {bound} }}

[training]
steps = {steps}
prompts_per_step = {prompts}
answers_per_prompt = {answers}
tokens_per_answer = {tokens}
learning_rate = {rate}
"""
FAR = '[{ name = "trainer", workers = 0 }, { name = "far", workers = 2 }]'
LINK = '[{{ between = ["trainer", "far"], bandwidth_mbit = 20, latency_ms = {milliseconds} }}]'
WARM_STEPS = 3
SPEEDUP_MIN = 1.8
LOST_POINTS_MAX = 5.0
"""One seed differs from the next by as much."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    seconds_per_step: float
    """Without the first steps."""
    passed_share: float
    sampled_staleness: Mapping[str, int]


def run(mode: str, bound: int, num_steps: int, delay_seconds: float, seed: int) -> Outcome:
    """One run of the command.

    Raises:
        RuntimeError: it failed; what it said.
    """
    is_alone = mode == "colocated"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = RUN.format(
            folder=folder,
            seed=seed,
            regions='[{ name = "here", workers = 1 }]' if is_alone else FAR,
            links="[]" if is_alone else LINK.format(milliseconds=1000 * delay_seconds),
            mode=mode,
            bound=bound,
            steps=num_steps,
            prompts=PROMPTS_PER_STEP,
            answers=ANSWERS_PER_PROMPT,
            tokens=ANSWER_TOKENS,
            rate=OPTIMIZER.learning_rate,
        )
        path = folder / "run.toml"
        path.write_text(text)
        command = [sys.executable, "-m", "farflung", "align", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{mode} failed: {done.stdout}{done.stderr}")
        summary: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
        trainer = next(counters for counters in summary["counters"].values() if "steps" in counters)
        ages = {key: value for key, value in trainer.items() if key.startswith("staleness/")}
        return Outcome(_seconds_per_step(folder / "run" / "log.jsonl", num_steps), summary["pass_rate"], ages)


def _seconds_per_step(log: Path, num_steps: int) -> float:
    """From the report of the first steps to that of the last one."""
    seen: dict[int, float] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "report" and "step" in entry["values"]:
            seen.setdefault(int(entry["values"]["step"]), entry["seconds"])
    first = min(step for step in seen if step >= WARM_STEPS)
    last = max(step for step in seen if step <= num_steps)
    return (seen[last] - seen[first]) / (last - first)


def main(arguments_given: Sequence[str] | None = None) -> int:
    """Run each, print and judge."""
    parser = bench_arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of a run; 6 with --quick")
    parser.add_argument("--delay", type=float, default=1.0, help="seconds, one way; 0.3 with --quick")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(arguments_given)
    num_steps, delay = (6, 0.3) if arguments.quick else (arguments.steps, arguments.delay)
    report = Report("alignment_real", {"num_steps": num_steps, "delay_seconds": delay, "seed": arguments.seed})
    wanted = {"co-located": ("colocated", 0), "Sequential": ("sequential", 0), "S=1": ("async", 1), "S=2": ("async", 2)}
    if arguments.quick:
        del wanted["co-located"], wanted["S=1"]
    found = {name: run(mode, bound, num_steps, delay, arguments.seed) for name, (mode, bound) in wanted.items()}
    rows = [
        (name, f"{one.seconds_per_step:.2f}", f"{one.passed_share:.1%}", str(dict(one.sampled_staleness)))
        for name, one in found.items()
    ]
    report.table(
        f"{delay:g} s each way, {num_steps} steps", ("arm", "seconds a step", "passed", "answers by age"), rows
    )
    speedup = found["Sequential"].seconds_per_step / found["S=2"].seconds_per_step
    report.claim(
        "S=2: steps a second over Sequential's", f">= {SPEEDUP_MIN}x", f"{speedup:.2f}x", speedup >= SPEEDUP_MIN
    )
    if "co-located" in found:
        base = found["co-located"].passed_share
        same = found["Sequential"].passed_share
        report.claim("Sequential passes as often as co-located", f"{base:.1%}", f"{same:.1%}", same == base)
        lost = 100 * (base - found["S=2"].passed_share)
        report.claim(
            f"S=2: points lost of {100 * base:.1f} %",
            f"<= {LOST_POINTS_MAX:g}",
            f"{lost:+.1f}",
            lost <= LOST_POINTS_MAX,
        )
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
