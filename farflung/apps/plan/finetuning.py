"""Ways of fine-tuning: single bytes of machines that hold the model, LoRA through block servers, one machine alone.

What counts is that all come to equally many updates: methods without gradients need so many forward passes for one.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

from farflung.apps.finetune.learners import BOTH_SIDES
from farflung.apps.finetune.method import ONEBYTE
from farflung.apps.finetune.run_file import FINETUNE, FinetuneRun
from farflung.apps.plan.fleet import BYTES, Machine, machines_of, machines_with_memory
from farflung.apps.plan.goals import FinetuneGoal, ServeGoal
from farflung.apps.plan.onebyte_run import Charges, OneByteRun
from farflung.apps.plan.outcome import Candidate, Job, Outcome, job_outcome
from farflung.apps.plan.places import scaled
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.run_tables import run_text, sites_tables
from farflung.apps.plan.serving import commands, groups_of, near_sites
from farflung.apps.plan.sizes import Sizes
from farflung.apps.plan.stand_in import WorkerPlace
from farflung.apps.plan.tuning_alone import ALONE, forward_speed, missing, try_alone, tuning_tables
from farflung.apps.plan.tuning_run import TuningRun
from farflung.apps.plan.words import Sentence, said
from farflung.apps.runs.reader import check_known

LORA = "lora"
SLOTS_PER_MACHINE = 32
SLOTS_MIN = 64
PATIENCE = 3
"""A round may take so many times as long as it should, and slots half as many, before anybody is asked again."""
MOVE_TOKENS, MOVE_TOKENS_PER_SLOT = 450.0, 1.0
"""What adding a round's steps up and rounding the weights takes, and what each slot adds to it; as a token's pass, it
grows with the parameters. Measured with 1 and 11 millions of them: 470 to 680 for 32 slots, 750 to 1170 for 512."""
SUMS_BYTES = 4
"""Of what the journal adds up to, for each parameter."""


def candidates(plan: PlanFile, goal: FinetuneGoal, sizes: Sizes) -> list[Candidate]:
    """Single bytes over all machines; LoRA through several chains; the others on the machine that suits them best.

    Raises:
        ValueError: there is no such method.
    """
    sizes.check_length(goal.sequence_length, "goal.sequence_length")
    known = (ONEBYTE, LORA, *ALONE)
    for name in goal.methods:
        check_known(name, known, "goal.methods", what="method")
    found: list[Candidate] = []
    for name in goal.methods or known:
        if name == LORA:
            found += _chains(plan, goal, sizes)
            continue
        method = said("method all" if name == ONEBYTE else "method alone", method=name)
        attempt = try_onebyte if name == ONEBYTE else try_alone
        found.append(Candidate(method, functools.partial(attempt, goal, sizes, method)))
    return found


def assumptions(goal: FinetuneGoal) -> list[Sentence]:
    """Beside those of every plan."""
    return [
        said("updates", updates=goal.num_updates, batch=goal.batch_size, length=goal.sequence_length),
        said("forwards", forwards=goal.forwards_per_update, measurements=goal.num_measurements),
        said("quality"),
    ]


# Single bytes


def try_onebyte(goal: FinetuneGoal, sizes: Sizes, method: Sentence, plan: PlanFile) -> Outcome:
    """Single bytes over all machines that hold the model.

    Raises:
        ValueError: none does, and by how much.
    """
    machines = onebyte_machines(plan, sizes)
    tables = onebyte_tables(plan, goal, sizes, machines)
    run = FINETUNE.read(tables, is_simulated=True)
    num_rounds, slots = run.training.rounds, run.onebyte.num_slots
    stretch = OneByteRun(
        plan,
        sizes,
        run.onebyte.rounds_config(num_rounds + 1000),  # longer than any stretch
        places_of(machines, sizes),
        num_slots=slots,
        charges=charges_of(run, goal),
        dtype=run.model.dtype,
    ).run(num_rounds)
    sent = scaled(stretch.bytes_per_step, num_rounds)
    job = Job(num_rounds / stretch.steps_per_second, goal.tokens, sent, stretch.busy_share, goal.days_max)
    start = run_text(tables, *missing(sizes))
    return job_outcome(plan, method=method, machines=machines, job=job, start=start)


def charges_of(run: FinetuneRun, goal: FinetuneGoal) -> Charges:
    """What a worker computes, in terms of its forward passes."""
    slot_seconds, training = run.simulation.slot_seconds, run.training
    slots_per_example = 1 / (BOTH_SIDES * goal.batch_size)
    num_scored = min(training.evaluation_examples, goal.examples)
    return Charges(
        slot_seconds=slot_seconds,
        move_seconds=moved_tokens(run.onebyte.num_slots) * slots_per_example / goal.sequence_length * slot_seconds,
        score_seconds=num_scored * slots_per_example * slot_seconds,
        score_rounds=training.evaluation_rounds,
    )


def moved_tokens(num_slots: int) -> float:
    """Tokens that pass through the model in the time in which weights follow the journal by a round."""
    return MOVE_TOKENS + MOVE_TOKENS_PER_SLOT * num_slots


def onebyte_machines(plan: PlanFile, sizes: Sizes) -> list[Machine]:
    """Those that hold the whole model: as it is, as it was, and what has been added up; the fastest site first.

    Raises:
        ValueError: none does, and by how much.
    """
    dtype = dtype_of(machines_of(plan), sizes)
    machines = machines_with_memory(
        machines_of(plan),
        lambda _: onebyte_bytes(sizes, dtype),
        "the whole model, its base and the sums of its steps",
    )
    speeds: dict[str, float] = {}
    for one in machines:
        speeds[one.site] = speeds.get(one.site, 0.0) + forward_speed(one, sizes)
    return sorted(machines, key=lambda one: -speeds[one.site])


def onebyte_bytes(sizes: Sizes, dtype: str) -> float:
    """Memory of a measurer."""
    return (2 * BYTES[dtype] + SUMS_BYTES) * sizes.parameters


def num_slots_of(goal: FinetuneGoal, num_machines: int) -> int:
    """Measurements of a round."""
    return goal.num_slots or max(SLOTS_MIN, SLOTS_PER_MACHINE * num_machines)


def dtype_of(machines: Sequence[Machine], sizes: Sizes) -> str:
    """Of the weights, which are the same everywhere: that of the fastest machine."""
    return max(machines, key=lambda one: forward_speed(one, sizes)).dtype


def places_of(machines: Sequence[Machine], sizes: Sizes) -> list[WorkerPlace]:
    """As workers, with speeds relative to the fastest."""
    speeds = [forward_speed(one, sizes) for one in machines]
    return [WorkerPlace(one.name, one.site, speed / max(speeds)) for one, speed in zip(machines, speeds, strict=True)]


def onebyte_tables(plan: PlanFile, goal: FinetuneGoal, sizes: Sizes, machines: Sequence[Machine]) -> dict[str, Any]:
    """The run file. Whoever is slow is waited for as long as that takes here."""
    places = places_of(machines, sizes)
    num_slots = num_slots_of(goal, len(machines))
    slot_seconds = BOTH_SIDES * goal.tokens_per_batch / max(forward_speed(one, sizes) for one in machines)
    round_seconds = num_slots * slot_seconds / sum(place.speed for place in places)
    slowest_seconds = num_slots / len(machines) * slot_seconds / min(place.speed for place in places)
    patience = {
        "round_seconds_max": math.ceil(max(60.0, PATIENCE * max(round_seconds, slowest_seconds))),
        "reissue_seconds": math.ceil(max(10.0, PATIENCE / 2 * round_seconds)),
    }
    return {
        **tuning_tables(goal, sizes, math.ceil(goal.num_measurements / num_slots), dtype_of(machines, sizes)),
        "method": {"name": ONEBYTE, "num_slots": num_slots, **patience},
        "simulation": {"slot_seconds": slot_seconds},
        **sites_tables(plan, places),
    }


# LoRA through block servers


def _chains(plan: PlanFile, goal: FinetuneGoal, sizes: Sizes) -> list[Candidate]:
    """All over; in few sites that are near to each other; the fewest machines: each chain once."""
    room = room_of(goal)
    tried = [said("all sites")]
    if len(plan.sites) > 1:
        near = dict.fromkeys(near_sites(plan, room, sizes, site) for site in plan.site_names)
        tried += [said("some sites", sites=", ".join(sites)) for sites in near if len(sites) < len(plan.sites)]
    found: list[Candidate] = []
    known: list[object] = []
    for where in (*tried, said("fewest")):
        try:
            groups = groups_of(plan, room, sizes, where)
        except ValueError:  # told when it is tried
            groups = None
        if groups is None or groups not in known:
            known.append(groups)
            method = said("method through", method=LORA, where=where)
            found.append(Candidate(method, functools.partial(_through, goal, sizes, method, where)))
    return found


def room_of(goal: FinetuneGoal) -> ServeGoal:
    """What block servers set aside, as for one user."""
    return ServeGoal(users=1, prompt_tokens=goal.sequence_length, answer_tokens=1)


def _through(goal: FinetuneGoal, sizes: Sizes, method: Sentence, where: Sentence, plan: PlanFile) -> Outcome:
    (group,) = groups_of(plan, room_of(goal), sizes, where)
    machines = [placed.machine for placed in group.servers]
    stretch = TuningRun(plan, goal, sizes, group.servers).run()
    sent = scaled(stretch.bytes_per_step, goal.num_updates)
    job = Job(goal.num_updates / stretch.steps_per_second, goal.tokens, sent, stretch.busy_share, goal.days_max)
    servers = [f"# {line}" for line in commands(room_of(goal), sizes, [group])]
    home = stretch.home.site
    tables = {
        **tuning_tables(goal, sizes, goal.num_updates),
        "method": {"name": LORA, "rank": goal.rank, "micro_batch_tokens": goal.micro_batch_tokens},
        "regions": [{"name": home, "workers": 1}],
    }
    begin = f"# farflung finetune run.toml --join TICKET     on a machine of {home}, once these serve:"
    start = "\n".join([begin, *servers, run_text(tables, *missing(sizes)).partition("\n")[2]])
    return job_outcome(plan, method=method, machines=machines, job=job, start=start)
