"""Fine-tuning on one machine alone, which sends nothing: what the ways over many machines are compared with."""

import math
from typing import Any

from farflung.apps.finetune.baselines.settings import FedAvgLoraSettings
from farflung.apps.finetune.learners import BOTH_SIDES
from farflung.apps.plan.fleet import Machine, machines_of, machines_with_memory
from farflung.apps.plan.goals import FinetuneGoal
from farflung.apps.plan.outcome import Job, Outcome, job_outcome
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.run_tables import MODEL_PATH, run_text
from farflung.apps.plan.sizes import Sizes
from farflung.apps.plan.words import Sentence
from farflung.apps.pretrain.model_table import PATH

MEZO, FEDAVG_LORA, ADAM = "mezo", "fedavg-lora", "adam"
ALONE = (MEZO, FEDAVG_LORA, ADAM)
TENSORS = {MEZO: 1, FEDAVG_LORA: 1, ADAM: 4}
"""Copies of the model that a method needs: of Adam also gradients and two moments."""
BACK_AND_FORTH = 2
"""Through frozen weights, in forward passes."""


def try_alone(goal: FinetuneGoal, sizes: Sizes, method: Sentence, plan: PlanFile) -> Outcome:
    """On the machine that is done first among those that hold what the method needs.

    Raises:
        ValueError: none does, and by how much.
    """
    name = str(method.values["method"])
    fitting = machines_with_memory(
        machines_of(plan),
        lambda one: TENSORS[name] * one.value_bytes * sizes.parameters,
        "parameters, gradients and moments" if TENSORS[name] > 1 else "parameters",
    )
    machine = min(fitting, key=lambda one: seconds_alone(name, goal, sizes, one))
    tables = {
        **tuning_tables(goal, sizes, rounds_alone(name, goal), machine.dtype),
        "method": {"name": name, **({"rank": goal.rank} if name == FEDAVG_LORA else {})},
        "regions": [{"name": machine.site, "workers": 1}],
    }
    job = Job(seconds_alone(name, goal, sizes, machine), goal.tokens, {}, 1.0, goal.days_max)
    start = run_text(tables, *missing(sizes))
    return job_outcome(plan, method=method, machines=[machine], job=job, start=start)


def seconds_alone(name: str, goal: FinetuneGoal, sizes: Sizes, machine: Machine) -> float:
    """Of the whole job."""
    if name == ADAM:
        return goal.tokens / machine.train_tokens_per_second(sizes.parameters)
    if name == MEZO:
        passes = goal.num_measurements * BOTH_SIDES
    else:  # clients are computed one after another
        settings = FedAvgLoraSettings()
        passes = rounds_alone(name, goal) * settings.local_steps * settings.num_clients * BACK_AND_FORTH
    return passes * goal.tokens_per_batch / forward_speed(machine, sizes)


def rounds_alone(name: str, goal: FinetuneGoal) -> int:
    """training.rounds: steps along one direction, rounds of all clients' local steps, or updates."""
    if name == MEZO:
        return goal.num_measurements
    return math.ceil(goal.num_updates / FedAvgLoraSettings().local_steps) if name == FEDAVG_LORA else goal.num_updates


def forward_speed(machine: Machine, sizes: Sizes) -> float:
    """Tokens per second through the whole model, many at once."""
    return machine.model_tokens_per_second(sizes.parameters, sizes.num_blocks)


def tuning_tables(goal: FinetuneGoal, sizes: Sizes, num_rounds: int, dtype: str = "") -> dict[str, Any]:
    """What the run files of all methods have."""
    return {
        "run": {"kind": "finetune", "name": "planned", "folder": "planned"},
        "model": {"path": str(sizes.table.get(PATH, MODEL_PATH)), **({"dtype": dtype} if dtype else {})},
        "data": {"train": "train.tsv"},
        "objective": {"length_max": goal.sequence_length},
        "training": {"rounds": num_rounds, "batch_size": goal.batch_size},
    }


def missing(sizes: Sizes) -> list[str]:
    """What is to be filled in."""
    path = [] if PATH in sizes.table else [f"{MODEL_PATH} stands for your model's folder or Hub id"]
    return [*path, "[data] and [objective] are yours to choose: see the documentation"]
