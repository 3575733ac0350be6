"""What plans predict against what real processes with shaped links do: serving and three kinds of runs.

Serving: a client asks servers that are reached through proxies with delay and a rate. Predicted from the speeds and
ways that a survey of that very swarm has measured. Pretraining: workers of two sites with a shaped link between them.
Predicted from the speed of as many processes training side by side here, just before. One byte: likewise, with
sequencer, standby and witness; bytes are those of its own messages, over rounds that all workers measured. Alignment
(without --quick): a trainer on one side of the link and a rollout worker on the other, by turns and at the same time.
All are `farflung pilot`'s own measurements. Targets: time within 15 %, bytes within 2 %.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.models import llama_even
from bench.report import Report, bench_arguments
from bench.swarms import Links, LocalSwarm, split_blocks
from farflung.apps.fork_server import serving_forks
from farflung.apps.pilot import aligning, finetuning, pretraining
from farflung.apps.pilot.comparison import Comparison, Row
from farflung.apps.pilot.serving import Miniature
from farflung.apps.pilot.serving import compared as compared_serving
from farflung.apps.pilot.standing import predicted, standing, target_of
from farflung.apps.pilot.survey import Survey, survey
from farflung.apps.plan.plan_file import plan_of
from farflung.apps.plan.swarm import look
from farflung.apps.wiring import Connection

TIME_ERROR, BYTES_ERROR = 0.15, 0.02
LINKS = Links(one_way_seconds=0.04, bytes_per_second=12.5e6)
SERVE_GOAL = {"kind": "serve", "users": 2, "prompt_tokens": 128, "answer_tokens": 48, "client_ms": 5.0}
NUM_SERVERS = 2
ALIGN_GOAL = {
    "kind": "align",
    "prompts_per_update": 4,
    "answers_per_prompt": 4,
    "prompt_tokens": 32,
    "answer_tokens": 32,
}
ONE_BYTE = "one byte"
ONE_BYTE_GOAL = {"kind": "finetune", "sequence_length": 32, "batch_size": 2}
ONE_BYTE_MODEL = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2}
ONE_BYTE_SLOTS = 256
"""Large rounds: who measures what again is drawn, and in small ones a message more is much."""
ONE_BYTE_QUICK = 64, 2.0, 8.0
"""Slots, seconds to measure, and seconds of a run of which 16 rounds or more count."""
FEW_ROUNDS_BYTES_ERROR = 0.1
"""Of those: what is drawn does not even out."""
METHODS, ALIGN_METHODS = ("ddp", "farflung"), ("sequential", "async")
PLAN = {
    "goal": {"kind": "pretrain", "tokens": 10_000_000, "sequence_length": 64, "batch_size": 4},
    "model": {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 1024,
        "max_position_embeddings": 512,
    },
    "sites": [{"name": "east"}, {"name": "west"}],
    "machines": [{"site": "east", "device": "cpu"}, {"site": "west", "device": "cpu"}],
    "links": [{"between": ["east", "west"], "bandwidth_mbit": 20, "round_trip_ms": 60}],
}


def serving(measure_seconds: float, seconds: float) -> Comparison:
    """One swarm, asked for so long."""
    with tempfile.TemporaryDirectory() as folder:
        swarm = LocalSwarm(llama_even(), Path(folder), num_threads=1, links=LINKS)
        with swarm:
            for number, blocks in enumerate(split_blocks(6, NUM_SERVERS)):
                swarm.options = ("--site", f"site-{number}")
                swarm.start(blocks)
            for server in swarm.servers:
                server.wait_serving()
            with Connection(swarm.ticket) as connection:
                return _asked(connection, measure_seconds, seconds)


def _asked(connection: Connection, measure_seconds: float, seconds: float) -> Comparison:
    found, target = Survey(), target_of(look(connection), None)
    seen = connection.bridge.run(survey(connection, target, found, measure_seconds, lambda _: None))
    of = standing({"goal": SERVE_GOAL}, seen, found, target)
    miniature = Miniature(connection, target, of.goal)
    connection.bridge.run(miniature.run(seconds, lambda _: None))
    return compared_serving(predicted(of), miniature.asked, of.goal, seconds, of.plan.remarks, is_whole=True)


def one_byte(num_slots: int, measure_seconds: float, seconds: float) -> Comparison:
    """One run of about so long."""
    goal, model = {**ONE_BYTE_GOAL, "num_slots": num_slots}, {**PLAN["model"], **ONE_BYTE_MODEL}
    return finetuning.tried(plan_of({**PLAN, "goal": goal, "model": model}), measure_seconds, seconds, None, None)


def claim_rows(report: Report, case: str, rows: Sequence[Row], bytes_error: float = BYTES_ERROR) -> None:
    """Each figure within its bound."""
    for row in rows:
        bound = bytes_error if row.unit == "B" else TIME_ERROR
        error = row.ratio - 1
        report.claim(
            f"{case}: {row.what()}", f"within {bound:.0%}", f"{error:+.1%} ({row.ratio:.3f})", abs(error) <= bound
        )


def main() -> int:
    """Run all cases and print what holds."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    measure_seconds, seconds = (4.0, 8.0) if arguments.quick else (25.0, 60.0)
    methods = METHODS[:1] if arguments.quick else METHODS
    report = Report("planner_accuracy", {"seconds": seconds, "servers": NUM_SERVERS, "methods": methods})
    found = {"serving": serving(measure_seconds, seconds)}
    long, align = (min(measure_seconds, 10.0), seconds), plan_of({**PLAN, "goal": ALIGN_GOAL})
    for method in methods:
        found[f"pretraining, {method}"] = pretraining.tried(plan_of(PLAN), *long, method, None)
    for method in () if arguments.quick else ALIGN_METHODS:
        found[f"alignment, {method}"] = aligning.tried(align, *long, method, None)
    size = ONE_BYTE_QUICK if arguments.quick else (ONE_BYTE_SLOTS, *long)
    found[ONE_BYTE] = one_byte(*size)
    for case, comparison in found.items():
        cells = [(row.what(), row.unit, row.predicted, row.measured, row.ratio) for row in comparison.rows]
        report.table(case, ("figure", "unit", "predicted", "measured", "ratio"), cells)
        is_short = arguments.quick and case == ONE_BYTE
        claim_rows(report, case, comparison.rows, FEW_ROUNDS_BYTES_ERROR if is_short else BYTES_ERROR)
    return report.finish(arguments)


if __name__ == "__main__":
    with serving_forks("farflung.apps.runs.take_seat"):  # seats start at once
        status = main()
    sys.exit(status)
