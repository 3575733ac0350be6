"""Ways of aligning: rollouts on other machines than the trainer, in step with it or ahead, or all on one machine."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from farflung.apps.align.run_file import ALIGN
from farflung.apps.plan.align_run import AlignRun, Synced
from farflung.apps.plan.fleet import Machine, machines_of, machines_with_memory
from farflung.apps.plan.goals import AlignGoal
from farflung.apps.plan.outcome import Candidate, Job, Outcome, job_outcome
from farflung.apps.plan.places import added, scaled
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.run_tables import MODEL_PATH, run_text, sites_tables
from farflung.apps.plan.sizes import Sizes
from farflung.apps.plan.stand_in import WorkerPlace
from farflung.apps.plan.units import bytes_of
from farflung.apps.plan.words import Sentence, said
from farflung.apps.pretrain.model_table import PATH
from farflung.apps.runs.reader import check_known
from farflung.systems.alignment.charges import Charges
from farflung.systems.alignment.pace import TOKENS_PER_SLICE
from farflung.systems.alignment.policy import ROWS_AT_ONCE

COLOCATED = "colocated"
NAMES = ("sequential", "async", COLOCATED)
TENSORS_KEPT = 4
"""Of what is trained: weights, gradients and two moments."""


def candidates(plan: PlanFile, goal: AlignGoal, sizes: Sizes) -> list[Candidate]:
    """Every mode over all sites; asynchronous in the trainer's site alone; one machine that does both.

    Raises:
        ValueError: there is no such method.
    """
    sizes.check_length(goal.prompt_tokens + goal.answer_tokens, "goal.prompt_tokens + goal.answer_tokens")
    for name in goal.methods:
        check_known(name, NAMES, "goal.methods", what="method")
    methods = [
        said("method alone" if name == COLOCATED else "method all", method=name) for name in goal.methods or NAMES
    ]
    if len(plan.sites) > 1 and "async" in (goal.methods or NAMES):
        site = max(machines_of(plan), key=lambda one: one.train_tokens_per_second(sizes.parameters)).site
        methods.append(said("method one", method="async", site=site))
    return [Candidate(method, functools.partial(try_method, goal, sizes, method)) for method in methods]


def assumptions(goal: AlignGoal, sizes: Sizes) -> list[Sentence]:
    """Beside those of every plan."""
    synced = synced_of(goal, sizes)
    weights = said("adapter synced", rank=goal.adapter_rank, size=bytes_of(synced.num_bytes))
    if not goal.adapter_rank:
        weights = said("weights synced", share=goal.changed_share, size=bytes_of(synced.num_bytes))
    return [said("answers", updates=goal.updates, answers=goal.answers_per_update, length=goal.answer_tokens), weights]


def synced_of(goal: AlignGoal, sizes: Sizes) -> Synced:
    """Weights in bfloat16, of which some change, or an adapter in float32, of which all do."""
    if goal.adapter_rank:
        return Synced(sizes.adapter_shapes(goal.adapter_rank), 1.0, torch.float32)
    return Synced(sizes.shapes, goal.changed_share, torch.bfloat16)


def try_method(goal: AlignGoal, sizes: Sizes, method: Sentence, plan: PlanFile) -> Outcome:
    """What one of `candidates` comes to.

    Raises:
        ValueError: it cannot work, and why.
    """
    if method.values["method"] == COLOCATED:
        return _colocated(plan, goal, sizes, method)
    trainer, workers = parts_of(plan, goal, sizes, str(method.values.get("site", "")))
    tables = run_tables(plan, goal, sizes, str(method.values["method"]), trainer, workers)
    run = ALIGN.read(tables, is_simulated=True)
    stretch = AlignRun(
        plan,
        run.conversation,
        synced_of(goal, sizes),
        prompt_tokens=goal.prompt_tokens,
        vocabulary_size=sizes.vocabulary_size,
        workers=places_of(goal, sizes, workers),
        trainer_site=trainer.site,
        charges=charges_of(goal, sizes, trainer, workers),
    ).run()
    num_more = goal.updates - 1
    is_training = stretch.trainer_share >= stretch.sampling_share
    job = Job(
        stretch.first_seconds + num_more * stretch.step_seconds,
        goal.tokens,
        added(stretch.first_bytes, scaled(stretch.step_bytes, num_more), stretch.version_bytes),
        max(stretch.trainer_share, stretch.sampling_share),
        goal.days_max,
        busy="limit trainer" if is_training else "limit sampling",
    )
    start = run_text(tables, *missing(sizes))
    return job_outcome(plan, method=method, machines=[trainer, *workers], job=job, start=start)


def _colocated(plan: PlanFile, goal: AlignGoal, sizes: Sizes, method: Sentence) -> Outcome:
    """Nothing is sent, and what it takes is what both parts take by turns."""
    fitting = _that_train(machines_of(plan), goal, sizes)

    def seconds_of(one: Machine) -> float:
        sampling = goal.answers_per_update * goal.answer_tokens * token_seconds(goal, sizes, one, ROWS_AT_ONCE)
        return step_seconds(goal, sizes, one) + sampling

    machine = min(fitting, key=seconds_of)
    tables = run_tables(plan, goal, sizes, COLOCATED, machine, [machine])
    step = step_seconds(goal, sizes, machine)
    seconds = goal.updates * seconds_of(machine)
    busy = "limit trainer" if 2 * step > seconds_of(machine) else "limit sampling"
    job = Job(seconds, goal.tokens, {}, 1.0, goal.days_max, busy=busy)
    start = run_text(tables, *missing(sizes))
    return job_outcome(plan, method=method, machines=[machine], job=job, start=start)


def parts_of(plan: PlanFile, goal: AlignGoal, sizes: Sizes, site: str = "") -> tuple[Machine, list[Machine]]:
    """The trainer, and who samples, of one site or of all: the fastest that can train does, all others sample.

    Raises:
        ValueError: one of the parts has no machine with enough memory, and by how much.
    """
    machines = [one for one in machines_of(plan) if site in ("", one.site)]
    if not machines:
        raise ValueError(f"there is no machine in {site}")
    trainer = max(_that_train(machines, goal, sizes), key=lambda one: one.train_tokens_per_second(sizes.parameters))
    others = [one for one in machines if one != trainer]
    if not others:
        raise ValueError("rollouts need another machine than the trainer, and there is one: 1 machine short")
    return trainer, machines_with_memory(
        others, lambda one: one.value_bytes * sizes.parameters, "the weights that a rollout worker samples with"
    )


def _that_train(machines: Sequence[Machine], goal: AlignGoal, sizes: Sizes) -> list[Machine]:
    def needed(one: Machine) -> float:
        if goal.adapter_rank:
            return one.value_bytes * sizes.parameters + 4 * TENSORS_KEPT * sizes.adapter_parameters(goal.adapter_rank)
        return TENSORS_KEPT * one.value_bytes * sizes.parameters

    return machines_with_memory(machines, needed, "the trainer's weights, gradients and moments")


def step_seconds(goal: AlignGoal, sizes: Sizes, machine: Machine) -> float:
    """Of one optimizer step on all answers, with their prompts."""
    num_tokens = goal.answers_per_update * (goal.prompt_tokens + goal.answer_tokens)
    return num_tokens / machine.train_tokens_per_second(sizes.parameters)


def token_seconds(goal: AlignGoal, sizes: Sizes, machine: Machine, num_rows: int) -> float:
    """Of one token of one answer, where so many are decoded together, with its part of reading the prompt."""
    rows = max(1, min(num_rows, ROWS_AT_ONCE, goal.answers_per_update))
    reading = sizes.num_blocks / machine.blocks_per_second(sizes.block_parameters) / rows
    arithmetic = 1 / machine.model_tokens_per_second(sizes.parameters, sizes.num_blocks)
    return max(reading, arithmetic) + arithmetic * goal.prompt_tokens / goal.answer_tokens


def charges_of(goal: AlignGoal, sizes: Sizes, trainer: Machine, workers: Sequence[Machine]) -> Charges:
    """Of the trainer, and of the fastest worker."""
    num_bytes = synced_of(goal, sizes).num_bytes
    rows = math.ceil(goal.answers_per_update / len(workers))
    worker = min(workers, key=lambda one: token_seconds(goal, sizes, one, rows))
    # Slices are charged whole, and the last one of an answer may be short.
    whole = math.ceil(goal.answer_tokens / TOKENS_PER_SLICE) * TOKENS_PER_SLICE / goal.answer_tokens
    token = 1 / worker.model_tokens_per_second(sizes.parameters, sizes.num_blocks) / whole
    return Charges(
        step_seconds=step_seconds(goal, sizes, trainer),
        pack_seconds=trainer.pack_seconds(num_bytes),
        install_seconds=worker.install_seconds(num_bytes),
        forward_seconds=sizes.num_blocks / worker.blocks_per_second(sizes.block_parameters) / whole,
        token_seconds=token,
        prompt_seconds=token * goal.prompt_tokens / goal.answer_tokens,
    )


def places_of(goal: AlignGoal, sizes: Sizes, machines: Sequence[Machine]) -> list[WorkerPlace]:
    """As workers, with speeds relative to the fastest, for answers shared out evenly."""
    rows = math.ceil(goal.answers_per_update / len(machines))
    seconds = [token_seconds(goal, sizes, one, rows) for one in machines]
    return [WorkerPlace(one.name, one.site, min(seconds) / each) for one, each in zip(machines, seconds, strict=True)]


def run_tables(
    plan: PlanFile, goal: AlignGoal, sizes: Sizes, mode: str, trainer: Machine, workers: Sequence[Machine]
) -> dict[str, Any]:
    """The run file; the trainer is in its first region."""
    rows = math.ceil(goal.answers_per_update / len(workers))
    num_here = 1 if mode == COLOCATED else 0  # the trainer has the lead's machine for itself
    return {
        "run": {"kind": "align", "name": "planned", "folder": "planned"},
        "model": {"path": str(sizes.table.get(PATH, MODEL_PATH)), "adapter_rank": goal.adapter_rank},
        "environment": {"kind": "function", "problems": "problems.jsonl", "reward": "reward.py:reward"},
        "training": {
            "steps": goal.updates,
            "prompts_per_step": goal.prompts_per_update,
            "answers_per_prompt": goal.answers_per_prompt,
            "tokens_per_answer": goal.answer_tokens,
        },
        "sync": {"mode": mode, **({"staleness_max": goal.staleness_max} if mode == "async" else {})},
        "simulation": {
            "step_seconds": step_seconds(goal, sizes, trainer),
            "token_seconds": min(token_seconds(goal, sizes, one, rows) for one in workers),
        },
        **sites_tables(plan, places_of(goal, sizes, workers), first=trainer.site, num_here=num_here),
    }


def missing(sizes: Sizes) -> list[str]:
    """What is to be filled in."""
    path = [] if PATH in sizes.table else [f"{MODEL_PATH} stands for your model's folder or Hub id"]
    return [*path, "[environment] and training.learning_rate are yours to choose: see the documentation"]
