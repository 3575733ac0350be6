"""A miniature of fine-tuning by single bytes: the plan's sites and links, one worker of this machine at each site."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

from farflung.apps.finetune.learners import BOTH_SIDES
from farflung.apps.finetune.method import ONEBYTE
from farflung.apps.finetune.run_file import FINETUNE, PLACED_SERVERS
from farflung.apps.pilot.comparison import Comparison, Row
from farflung.apps.pilot.local_run import (
    Small,
    check_memory,
    led,
    local_tables,
    miniature,
    run_folder,
)
from farflung.apps.pilot.measurements import slots_per_second
from farflung.apps.pilot.steady import ROUNDS_MIN, steady
from farflung.apps.pilot.stock import num_texts, stocked, write_stock
from farflung.apps.plan.finetuning import (
    LORA,
    num_slots_of,
    onebyte_bytes,
    onebyte_machines,
    onebyte_tables,
    try_onebyte,
)
from farflung.apps.plan.goals import FinetuneGoal
from farflung.apps.plan.places import between_sites
from farflung.apps.plan.plan_file import MachineSettings, PlanFile
from farflung.apps.plan.sizes import Sizes, sizes_of
from farflung.apps.plan.tuning_alone import ALONE
from farflung.apps.plan.words import Sentence, said
from farflung.apps.runs.history import History
from farflung.apps.runs.reader import check_known

METHOD = said("method all", method=ONEBYTE)
DTYPE = "float32"
"""Of the weights, on any processor."""


def tried(
    plan: PlanFile, measure_seconds: float, seconds: float, method: str | None, folder: Path | None
) -> Comparison:
    """Measure, run and compare.

    Raises:
        ValueError: a mistake in the plan, or a run that is too large for this machine or for the time.
    """
    assert isinstance(plan.goal, FinetuneGoal)
    check_method(method or next(iter(sorted(plan.goal.methods, key=lambda name: name != ONEBYTE)), None))
    sizes = sizes_of(plan.model)
    sizes.check_length(plan.goal.sequence_length, "goal.sequence_length")
    with run_folder(folder) as place:
        small = small_run(plan, plan.goal, sizes, measure_seconds, seconds, place.path)
        history, is_whole = led(FINETUNE.kind, small, place)
    processes = said("pilot processes", workers=len(small.outcome.machines))
    found = compared(small, history, (processes, said("pilot own bytes"), *plan.remarks), is_whole=is_whole)
    if is_whole and not found.rows:
        raise ValueError(
            f"the {small.num_steps} rounds were over before all workers had joined: give a larger --seconds than "
            f"{seconds:g}"
        )
    return found


def check_method(method: str | None) -> None:
    """Refuse what has no miniature.

    Raises:
        ValueError: says so.
    """
    if method in (None, ONEBYTE):
        return
    check_known(str(method), (ONEBYTE, LORA, *ALONE), "--method", what="method")
    if method == LORA:
        raise ValueError(
            "a pilot tries no lora through block servers, which would have to be started for it: "
            "leave out --method, and onebyte is tried"
        )
    raise ValueError(
        f"{method} sends nothing between machines, so that one machine's own speed is all that there is to try: "
        f"run `farflung finetune --method {method}`, or leave out --method, and onebyte is tried"
    )


def small_run(
    plan: PlanFile, goal: FinetuneGoal, sizes: Sizes, measure_seconds: float, seconds: float, folder: Path
) -> Small:
    """Measure this machine, predict, and size the run for `seconds`.

    Raises:
        ValueError: too little memory, or too little time for some rounds.
    """
    transformers.logging.disable_progress_bar()
    names = plan.site_names
    check_memory(onebyte_bytes(sizes, DTYPE), len(names), "tunes")
    stock = write_stock(goal, sizes, folder)
    alike = _miniature(plan, goal, sizes, [1.0] * len(names))
    speeds = slots_per_second(_tables(alike, goal, sizes, stock, folder), measure_seconds)
    here = _miniature(plan, goal, sizes, speeds)
    one = of_rounds(goal, 1, num_slots_of(goal, len(names)))
    num_rounds = sized_rounds(1 / try_onebyte(one, sizes, METHOD, here).seconds, seconds)
    budget = of_rounds(goal, num_rounds, num_slots_of(goal, len(names)))
    found = _tables(here, budget, sizes, stock, folder)
    return Small(found, METHOD, try_onebyte(budget, sizes, METHOD, here), num_rounds)


def _miniature(plan: PlanFile, goal: FinetuneGoal, sizes: Sizes, slots_per_second: Sequence[float]) -> PlanFile:
    """`slots_per_second`: of the machine at each site."""
    passed = BOTH_SIDES * goal.tokens_per_batch * sizes.num_blocks
    machines = [
        MachineSettings(site=name, device="cpu", dtype=DTYPE, forward_tokens_per_second=speed * passed)
        for name, speed in zip(plan.site_names, slots_per_second, strict=True)
    ]
    return miniature(plan, machines)


def _tables(plan: PlanFile, goal: FinetuneGoal, sizes: Sizes, stock: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The run file that the plan writes, for processes of this machine."""
    tables = local_tables(onebyte_tables(plan, goal, sizes, onebyte_machines(plan, sizes)), folder)
    first, *others = tables["regions"]
    # Where other regions are other machines' these sit beside the lead by themselves.
    tables["regions"] = [{**first, "servers": list(PLACED_SERVERS)}, *others]
    return stocked(tables, stock)


def sized_rounds(rounds_per_second: float, seconds: float) -> int:
    """Rounds that take about so long.

    Raises:
        ValueError: too few to tell anything.
    """
    num_rounds = int(seconds * rounds_per_second)
    if num_rounds < ROUNDS_MIN:
        needed = math.ceil(ROUNDS_MIN / rounds_per_second)
        raise ValueError(
            f"{ROUNDS_MIN} rounds of {ONEBYTE}, of which the first do not count, take {needed} s here, and --seconds "
            f"is {seconds:g}: give --seconds {needed}, or a smaller goal.batch_size or goal.num_slots"
        )
    return num_rounds


def of_rounds(goal: FinetuneGoal, num_rounds: int, num_slots: int) -> FinetuneGoal:
    """The goal with so many rounds to go, on the texts that a pilot has."""
    return replace(
        goal,
        examples=num_texts(goal),
        updates=num_rounds * num_slots,
        forwards_per_update=BOTH_SIDES,
        num_slots=num_slots,
        days_max=None,
    )


def compared(small: Small, history: History, remarks: tuple[Sentence, ...], *, is_whole: bool) -> Comparison:
    """Of the rounds after all workers have joined: their time, and bytes from site to site."""
    rows: list[Row] = []
    machines = small.outcome.machines
    found = steady(history, len(machines), machines[0].site)
    if found is not None:
        num_rounds, share = found.num_rounds, found.num_rounds / small.num_steps
        what, seconds = said("row rounds", rounds=num_rounds), share * small.outcome.seconds
        rows.append(Row(what, "s", seconds, num_rounds / found.rounds_per_second))
        for way, num_bytes in sorted(between_sites(small.outcome.sent).items()):
            what, measured = said("row bytes", one=way[0], other=way[1]), found.bytes_per_round.get(way, 0.0)
            rows.append(Row(what, "B", share * num_bytes, num_rounds * measured))
    return Comparison(
        method=small.method, seconds=history.seconds, rows=tuple(rows), remarks=remarks, is_whole=is_whole
    )
