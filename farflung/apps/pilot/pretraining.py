"""A miniature of pretraining: the plan's sites and links, with one worker of this machine in the place of each site."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from farflung.apps.pilot.comparison import Comparison, Row
from farflung.apps.pilot.local_run import (
    Small,
    byte_rows,
    check_memory,
    chosen_method,
    led,
    local_tables,
    miniature,
    rate_of,
    run_folder,
    sites_of,
)
from farflung.apps.pilot.steps import steps_per_second
from farflung.apps.plan.goals import PretrainGoal
from farflung.apps.plan.outcome import Outcome
from farflung.apps.plan.plan_file import MachineSettings, PlanFile
from farflung.apps.plan.pretraining import machines_that_fit, replica_bytes, run_tables, try_method
from farflung.apps.plan.sizes import Sizes, sizes_of
from farflung.apps.plan.training_run import num_rounds_of_cycle
from farflung.apps.plan.words import Sentence, said
from farflung.apps.pretrain import desync
from farflung.apps.pretrain.algorithms import NAMES
from farflung.apps.pretrain.run_file import PRETRAIN
from farflung.apps.runs.history import History

VOCABULARY_LEARNT = 1024


def tried(
    plan: PlanFile, measure_seconds: float, seconds: float, method: str | None, folder: Path | None
) -> Comparison:
    """Choose, measure, run and compare.

    Raises:
        ValueError: a mistake in the plan, or a run that is too large for this machine or for the time.
    """
    sizes = sizes_of(plan.model)
    assert isinstance(plan.goal, PretrainGoal)
    chosen = chosen_method(plan, sizes, method, NAMES)
    with run_folder(folder) as place:
        small = small_run(plan, plan.goal, sizes, chosen, measure_seconds, seconds, place.path)
        history, is_whole = led(PRETRAIN.kind, small, place)
    processes = said("pilot processes", workers=len(small.outcome.machines))
    return compared(small, history, (processes, *plan.remarks), is_whole=is_whole)


def small_run(
    plan: PlanFile,
    goal: PretrainGoal,
    sizes: Sizes,
    method: Sentence,
    measure_seconds: float,
    seconds: float,
    folder: Path,
) -> Small:
    """Measure this machine, predict, and size the run for `seconds`.

    Raises:
        ValueError: too little memory, or too little time for a round.
    """
    names = sites_of(plan, method)
    check_memory(replica_bytes(goal, sizes), len(names), "trains")
    alike = _miniature(plan, names, [1.0] * len(names))
    speeds = steps_per_second(_tables(alike, goal, sizes, method, folder), measure_seconds)
    here = _miniature(plan, names, [speed * goal.tokens_per_step for speed in speeds])
    outcome = try_method(goal, sizes, method, here)
    num_steps = sized_steps(here, goal, sizes, method, folder, outcome, seconds)
    budget = replace(goal, tokens=num_steps * goal.tokens_per_step, days_max=None)
    found = _tables(here, budget, sizes, method, folder)
    return Small(found, method, try_method(budget, sizes, method, here), num_steps)


def _miniature(plan: PlanFile, names: list[str], tokens_per_second: list[float]) -> PlanFile:
    machines = [
        MachineSettings(site=name, device="cpu", train_tokens_per_second=speed)
        for name, speed in zip(names, tokens_per_second, strict=True)
    ]
    return miniature(plan, machines)


def _tables(plan: PlanFile, goal: PretrainGoal, sizes: Sizes, method: Sentence, folder: Path) -> dict[str, Any]:
    """The run file that the plan writes, for processes of this machine."""
    machines = machines_that_fit(plan, goal, sizes, str(method.values.get("site", "")))
    tables = run_tables(plan, goal, sizes, machines, str(method.values["method"]))
    model = dict(tables["model"])
    if "path" not in model:
        # A vocabulary that the tokenizer decides would make another model than the one that is planned for.
        model["vocab_size"] = sizes.source.config.vocab_size
        tables["data"] = {"vocabulary_size": min(VOCABULARY_LEARNT, model["vocab_size"])}
    return local_tables({**tables, "model": model}, folder)


def sized_steps(
    plan: PlanFile, goal: PretrainGoal, sizes: Sizes, method: Sentence, folder: Path, outcome: Outcome, seconds: float
) -> int:
    """Local steps of all workers that take about so long, in whole rounds.

    Raises:
        ValueError: not one round fits.
    """
    num_wanted = seconds * outcome.tokens_per_second / goal.tokens_per_step
    run = PRETRAIN.read(_tables(plan, goal, sizes, method, folder))
    num_each = len(outcome.machines)
    if not run.algorithm.is_hierarchical:
        config = desync.config_of(run)
        if not config.is_free_running:
            num_each *= config.parameters_every * num_rounds_of_cycle(config)
    if num_wanted < num_each:
        needed = num_each / num_wanted * seconds
        raise ValueError(
            f"a round of {method()} takes {needed:.0f} s here, and --seconds is {seconds:g}: give --seconds "
            f"{math.ceil(needed)}, or another --method"
        )
    return int(num_wanted // num_each) * num_each


def compared(small: Small, history: History, remarks: tuple[Sentence, ...], *, is_whole: bool) -> Comparison:
    """Of what was done: its time, and bytes from site to site."""
    num_steps = history.num_steps()
    share = num_steps / small.num_steps
    rows: list[Row] = []
    rate, tokens_per_step = rate_of(history), small.outcome.tokens_per_second * small.outcome.seconds / small.num_steps
    if rate:
        num_tokens = round(num_steps * tokens_per_step)
        measured = num_steps / rate
        rows.append(Row(said("row time", tokens=num_tokens), "s", share * small.outcome.seconds, measured))
        rows.append(Row(said("row rate"), "tokens/s", small.outcome.tokens_per_second, rate * tokens_per_step))
        rows += byte_rows(small.outcome, share, history)
    return Comparison(
        method=small.method, seconds=history.seconds, rows=tuple(rows), remarks=remarks, is_whole=is_whole
    )
