"""A miniature of alignment: the plan's links, with one trainer and one rollout worker of each site on this machine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from farflung.apps.align.run_file import ALIGN
from farflung.apps.pilot.alignment_speeds import Sampled, Speeds, Trained, speeds_of
from farflung.apps.pilot.comparison import Comparison, Row, mean
from farflung.apps.pilot.exercise import write_exercise
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
)
from farflung.apps.plan.aligning import COLOCATED, NAMES, TENSORS_KEPT, parts_of, run_tables, synced_of, try_method
from farflung.apps.plan.fleet import machines_of
from farflung.apps.plan.goals import AlignGoal
from farflung.apps.plan.outcome import Outcome
from farflung.apps.plan.places import added, scaled
from farflung.apps.plan.plan_file import MachineSettings, PlanFile
from farflung.apps.plan.sizes import Sizes, sizes_of
from farflung.apps.plan.words import Sentence, said
from farflung.apps.runs.history import History
from farflung.systems.alignment.learning_config import LearnerConfig

DTYPE = torch.bfloat16
"""Of the weights, as the plan takes them to be."""
LEARNING_RATE = 3e-6
"""At which the plan's share of weights that an update changes was measured."""
BETA1 = LearnerConfig().optimizer.beta1
UPDATES_MIN = 4
"""Between which there is a pace to see."""
EXERCISE = "exercise"
_ALIKE = Speeds(Trained(1.0, 1.0, (1.0,)), (Sampled(1, 0.5, 1.0, 1.0),))
"""Before anything is measured."""


@dataclass(frozen=True, slots=True)
class SmallAlignment:
    """What is run, and what is predicted of it."""

    small: Small
    first: Outcome
    """Of the first update alone, which waits for all to come together."""
    goal: AlignGoal

    def at(self, num_updates: int) -> Outcome:
        """When so many are made."""
        whole, share = self.small.outcome, (num_updates - 1) / (self.small.num_steps - 1)
        sent = added(scaled(self.first.sent, 1 - share), scaled(whole.sent, share))
        return replace(whole, seconds=(1 - share) * self.first.seconds + share * whole.seconds, sent=sent)


def tried(
    plan: PlanFile, measure_seconds: float, seconds: float, method: str | None, folder: Path | None
) -> Comparison:
    """Choose, measure, run and compare.

    Raises:
        ValueError: a mistake in the plan, or a run that is too large for this machine or for the time.
    """
    sizes = sizes_of(plan.model)
    assert isinstance(plan.goal, AlignGoal)
    chosen = chosen_method(plan, sizes, method, NAMES, alone=(COLOCATED,))
    with run_folder(folder) as place:
        aligned = small_run(plan, plan.goal, sizes, chosen, measure_seconds, seconds, place.path)
        history, is_whole = led(ALIGN.kind, aligned.small, place)
    return compared(aligned, history, plan.remarks, is_whole=is_whole)


def small_run(
    plan: PlanFile,
    goal: AlignGoal,
    sizes: Sizes,
    method: Sentence,
    measure_seconds: float,
    seconds: float,
    folder: Path,
) -> SmallAlignment:
    """Measure this machine, predict, and size the run for `seconds`.

    Raises:
        ValueError: too little memory, or too little time for some updates.
    """
    sites = sites_of_processes(plan, goal, sizes, method)
    check_memory(TENSORS_KEPT * DTYPE.itemsize * sizes.parameters, len(sites), "aligns")
    exercise = write_exercise(folder / EXERCISE, sizes, goal.prompt_tokens, DTYPE)
    alike = _miniature(plan, goal, sizes, sites, _ALIKE)
    speeds = speeds_of(_tables(alike, goal, sizes, method, exercise, folder), measure_seconds)
    here = _miniature(plan, goal, sizes, sites, speeds)
    num_updates = sized_updates(replace(goal, changed_share=mean_share(speeds)), sizes, method, here, seconds)
    budget = replace(goal, updates=num_updates, changed_share=mean_share(speeds, num_updates), days_max=None)
    found = Small(
        _tables(here, budget, sizes, method, exercise, folder),
        method,
        try_method(budget, sizes, method, here),
        num_updates,
    )
    return SmallAlignment(found, try_method(replace(budget, updates=1), sizes, method, here), budget)


def sites_of_processes(plan: PlanFile, goal: AlignGoal, sizes: Sizes, method: Sentence) -> list[str]:
    """Where the trainer sits, and after it one rollout worker of each site that has some.

    Raises:
        ValueError: as `parts_of`.
    """
    if method.values["method"] == COLOCATED:
        return [try_method(goal, sizes, method, plan).machines[0].site]
    trainer, workers = parts_of(plan, goal, sizes, str(method.values.get("site", "")))
    return [trainer.site, *dict.fromkeys(worker.site for worker in workers)]


def sized_updates(goal: AlignGoal, sizes: Sizes, method: Sentence, here: PlanFile, seconds: float) -> int:
    """Updates that take about so long.

    Raises:
        ValueError: too few to compare anything.
    """
    one, two = (try_method(replace(goal, updates=count), sizes, method, here).seconds for count in (1, 2))
    num_updates = 1 + math.floor((seconds - one) / (two - one))
    if num_updates < UPDATES_MIN:
        needed = one + (UPDATES_MIN - 1) * (two - one)
        raise ValueError(
            f"{UPDATES_MIN} updates of {method()} take {needed:.0f} s here, and --seconds is {seconds:g}: give "
            f"--seconds {math.ceil(needed)}, or another --method"
        )
    return num_updates


def mean_share(speeds: Speeds, num_updates: int | None = None) -> float:
    """Of weights that an update changes, over so many (None: as many as were seen); later ones are taken to be shorter
    than the last that were seen, by as much as Adam's are."""
    seen = list(speeds.trained.changed_shares)
    late = range(len(seen) // 2, len(seen))
    per_length = mean([seen[place] for place in late]) / mean([_adam_length(place + 1) for place in late])
    count = len(seen) if num_updates is None else num_updates
    return mean([*seen[:count], *(per_length * _adam_length(place + 1) for place in range(len(seen), count))])


def _adam_length(number: int) -> float:
    """Of Adam's step of that number, from 1 on, where gradients are chance, over that of its late ones: the first
    moment is a mean of ever more of them, until it forgets as many as come."""
    left = BETA1**number
    return math.sqrt((1 + left) / (1 - left))


def _miniature(plan: PlanFile, goal: AlignGoal, sizes: Sizes, sites: Sequence[str], speeds: Speeds) -> PlanFile:
    """The trainer's machine is the first; it samples too where there is no other."""
    num_tokens = goal.answers_per_update * (goal.prompt_tokens + goal.answer_tokens)
    num_bytes = synced_of(goal, sizes).num_bytes
    trainer = MachineSettings(
        site=sites[0],
        device="cpu",
        dtype="bfloat16",
        train_tokens_per_second=num_tokens / speeds.trained.step_seconds,
        packed_bytes_per_second=num_bytes / speeds.trained.pack_seconds,
    )
    is_alone = len(sites) == 1
    samplers = [trainer] if is_alone else [replace(trainer, site=site) for site in sites[1:]]
    machines = [
        replace(
            one,
            blocks_per_second=sizes.num_blocks * goal.answer_tokens / (found.answer_seconds - found.first_seconds),
            forward_tokens_per_second=sizes.num_blocks * found.num_rows * goal.prompt_tokens / found.first_seconds,
            installed_bytes_per_second=num_bytes / found.install_seconds,
        )
        for one, found in zip(samplers, speeds.sampled * len(samplers), strict=False)
    ]
    return miniature(plan, machines if is_alone else [trainer, *machines])


def _tables(
    plan: PlanFile, goal: AlignGoal, sizes: Sizes, method: Sentence, exercise: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """The run file that the plan writes, for processes of this machine."""
    mode = str(method.values["method"])
    trainer, *workers = machines_of(plan)
    tables = run_tables(plan, goal, sizes, mode, trainer, workers or [trainer])
    given = {
        "model": {**tables["model"], **exercise["model"]},
        "environment": exercise["environment"],
        "training": {**tables["training"], "learning_rate": LEARNING_RATE, "evaluation_prompts": 1},
    }
    return local_tables({**tables, **given}, folder)


def compared(aligned: SmallAlignment, history: History, remarks: tuple[Sentence, ...], *, is_whole: bool) -> Comparison:
    """Of what was done: the time from its first update on, and bytes from site to site."""
    goal, small = aligned.goal, aligned.small
    num_updates, rate = history.num_steps(), rate_of(history)
    rows: list[Row] = []
    if rate:
        num_more = num_updates - 1
        predicted = aligned.at(num_updates)
        seconds = predicted.seconds - aligned.first.seconds
        tokens = goal.answers_per_update * goal.answer_tokens
        rows.append(Row(said("row updates", updates=num_more), "s", seconds, num_more / rate))
        rows.append(Row(said("row sampled"), "tokens/s", tokens * num_more / seconds, tokens * rate))
        rows += byte_rows(predicted, 1.0, history)
    processes = said("pilot aligned", workers=max(1, len(small.outcome.machines) - 1))
    shares = () if goal.adapter_rank else (said("pilot changed", share=goal.changed_share),)
    return Comparison(
        method=small.method,
        seconds=history.seconds,
        rows=tuple(rows),
        remarks=(processes, *shares, *remarks),
        is_whole=is_whole,
    )
