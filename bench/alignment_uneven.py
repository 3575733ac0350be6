"""Uneven rollout nodes: what they train together, against the sum of what each of them could do alone.

Two usual nodes, one that is five times slower, one behind a link of 5 Mbit/s. The model, its steps, messages and bytes
are real, the time is virtual: a usual node samples 32 answers a second, a step takes 0.1 s, and links have 50 ms and
20 Mbit/s unless they say otherwise. Throughput is answers trained on per second, once the first steps are made.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.alignment_task import ANSWERS_PER_PROMPT, PROMPTS_PER_STEP, Task, model_folder
from bench.report import Report, bench_arguments
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Link, Topology
from farflung.systems.alignment.charges import Charges
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.trainer import StepReport, Trainer
from farflung.systems.alignment.worker import Worker
from farflung.world.address import PeerId
from farflung.world.doors import World

TRAINER = "trainer"
ANSWERS_PER_SECOND = 32.0
STEP_SECONDS = 0.1
LATENCY_SECONDS = 0.05
MEGABIT = 1e6 / 8
WARM_STEPS = 5
SHARE_MIN = 0.85


@dataclass(frozen=True, slots=True)
class Node:
    """A rollout node."""

    name: str
    slowness: float = 1.0
    megabits_per_second: float = 20.0


NODES = (Node("usual"), Node("another"), Node("slow", slowness=5.0), Node("far", megabits_per_second=5.0))


def link_of(megabits_per_second: float) -> Link:
    """Each way."""
    return Link(latency_seconds=LATENCY_SECONDS, bytes_per_second=megabits_per_second * MEGABIT)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    answers_per_second: float
    sampled: dict[str, int]
    num_stale: int


def run(folder: Path, nodes: Sequence[Node], staleness_max: int, num_steps: int) -> Outcome:
    """Train with these nodes."""
    torch.set_num_threads(1)
    task = Task(folder, seed=0)
    config = AlignmentConfig(
        num_steps=num_steps,
        prompts_per_step=PROMPTS_PER_STEP,
        answers_per_prompt=ANSWERS_PER_PROMPT,
        num_tokens_max=task.answer_tokens,
        staleness_max=staleness_max,
        steps_per_checkpoint=num_steps,
    )
    topology = Topology(between=link_of(20.0))
    for node in nodes:
        topology.link(TRAINER, node.name, link_of(node.megabits_per_second))
    stepped_at: list[float] = []
    with Simulation(seed=0, topology=topology, keep_trace=False) as simulation:
        running: list[asyncio.Task[Any]] = []
        workers: dict[str, Worker] = {}
        trainers: list[Trainer] = []

        def start(work: Coroutine[Any, Any, Any]) -> None:
            running.append(asyncio.get_running_loop().create_task(work))

        def report(step: StepReport) -> None:
            stepped_at.append(simulation.now())

        def boot_trainer(world: World) -> None:
            settings: dict[str, Any] = {
                "run": b"bench",
                "report": report,
                "charges": Charges(step_seconds=STEP_SECONDS),
            }
            trainers.append(Trainer(world, config, task.learner(), task.environment, **settings))
            start(trainers[0].run())

        def boot_worker(world: World) -> None:
            name = str(world.network.peer)
            settings: dict[str, Any] = {"name": name, "hub": PeerId(TRAINER), "run": b"bench"}
            settings |= {"num_answers_max": 64, "tokens_per_slice": task.answer_tokens}
            settings["charges"] = Charges(token_seconds=1 / (ANSWERS_PER_SECOND * task.answer_tokens))
            workers[name] = Worker(world, config, task.policy(), **settings)
            start(workers[name].run())

        simulation.node(TRAINER, site=TRAINER, boot=boot_trainer)
        for node in nodes:
            simulation.node(node.name, site=node.name, slowness=node.slowness, boot=boot_worker)

        async def wait() -> None:
            await asyncio.gather(*running)

        simulation.run(wait(), deadline=1e6)
        num_answers = (num_steps - WARM_STEPS) * PROMPTS_PER_STEP * ANSWERS_PER_PROMPT
        seconds = stepped_at[-1] - stepped_at[WARM_STEPS - 1]
        sampled = {name: worker.report.num_taken for name, worker in workers.items()}
        return Outcome(num_answers / seconds, sampled, trainers[0].ledger.state.num_stale)


def main(arguments_given: Sequence[str] | None = None) -> int:
    """Measure each alone and all together, print and judge."""
    parser = bench_arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=60, help="of a run; 20 with --quick")
    arguments = parser.parse_args(arguments_given)
    num_steps = 20 if arguments.quick else arguments.steps
    folder = model_folder("sums")
    report = Report("alignment_uneven", {"num_steps": num_steps})
    rows: list[tuple[object, ...]] = []
    for bound in (2,) if arguments.quick else (1, 2, 4):
        alone = {node.name: run(folder, [node], bound, num_steps).answers_per_second for node in NODES}
        together = run(folder, NODES, bound, num_steps)
        share = together.answers_per_second / sum(alone.values())
        rows.append(
            (
                f"S={bound}",
                *(f"{rate:.1f}" for rate in alone.values()),
                f"{together.answers_per_second:.1f}",
                f"{share:.0%}",
                ", ".join(str(count) for count in together.sampled.values()),
                together.num_stale,
            )
        )
        report.claim(
            f"S={bound}: answers trained a second, all together, of the sum of each alone ({sum(alone.values()):.1f})",
            f">= {SHARE_MIN:.0%}",
            f"{share:.1%}",
            share >= SHARE_MIN or bound == 1,
        )
    columns = ("bound", *(f"{node.name} alone" for node in NODES), "together", "share", "taken of each", "too old")
    report.table("answers a second", columns, rows)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
