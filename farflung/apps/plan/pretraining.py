"""Ways of pretraining: every algorithm over all sites, and plain data parallelism in the fastest site."""

import functools
from collections.abc import Sequence
from typing import Any

from farflung.apps.plan.fleet import Machine, machines_of, machines_with_memory
from farflung.apps.plan.goals import PretrainGoal
from farflung.apps.plan.outcome import Candidate, Job, Outcome, job_outcome
from farflung.apps.plan.places import scaled
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.run_tables import run_text, sites_tables
from farflung.apps.plan.sizes import Sizes
from farflung.apps.plan.stand_in import WorkerPlace
from farflung.apps.plan.training_run import Stretch, rounds_stretch, tree_stretch
from farflung.apps.plan.units import number_of, time_of
from farflung.apps.plan.words import Sentence, said
from farflung.apps.pretrain import desync, hierarchy
from farflung.apps.pretrain.algorithms import NAMES
from farflung.apps.pretrain.run_file import PRETRAIN, RunFile
from farflung.apps.runs.reader import check_known

TENSORS_KEPT = 6
"""Of the model's size, in 32 bits: parameters, gradients, two moments, what was agreed on, and what is owed."""
EXCHANGE_SECONDS_USUAL = 600.0
ROUNDS_PER_EXCHANGE = 3
"""An exchange that takes so many times as long as a round in this plan is abandoned."""
BASELINE = "ddp"
BYTES_PER_VALUE, BYTES_PER_VALUE_CODED = 4.0, 0.5
"""Of rounds that are waited for, and of the method that never waits, which sends four bits of each."""
ROUND_SECONDS_MAX = 1e6
STEPS_PER_EXCHANGE_MAX = 2000
"""Local steps: the most that DiLoCo (arXiv 2311.08105) was tried with."""


def candidates(plan: PlanFile, goal: PretrainGoal, sizes: Sizes) -> list[Candidate]:
    """All algorithms, or those that the goal names.

    Raises:
        ValueError: there is no such algorithm.
    """
    sizes.check_length(goal.sequence_length, "goal.sequence_length")
    for name in goal.methods:
        check_known(name, NAMES, "goal.methods", what="algorithm")
    tried = [said("method all", method=name) for name in goal.methods or NAMES]
    if len(plan.sites) > 1:
        tried.append(said("method one", method=BASELINE, site=_fastest_site(plan, sizes)))
    return [Candidate(method, functools.partial(try_method, goal, sizes, method)) for method in tried]


def _fastest_site(plan: PlanFile, sizes: Sizes) -> str:
    def speed(site: str) -> float:
        return sum(one.train_tokens_per_second(sizes.parameters) for one in machines_of(plan) if one.site == site)

    return max(plan.site_names, key=speed)


def try_method(goal: PretrainGoal, sizes: Sizes, method: Sentence, plan: PlanFile) -> Outcome:
    """What it comes to on a plan's machines.

    Raises:
        ValueError: it cannot work there, and why.
    """
    machines = machines_that_fit(plan, goal, sizes, str(method.values.get("site", "")))
    run = PRETRAIN.read(run_tables(plan, goal, sizes, machines, str(method.values["method"])), is_simulated=True)
    workers = places_of(machines, sizes)
    seconds = run.simulation.step_seconds
    if run.algorithm.is_hierarchical:
        has_global = run.algorithm.name == hierarchy.TREE
        config = hierarchy.config_of(run)
        stretch = tree_stretch(plan, config, workers, seconds, sizes.parameters, has_global=has_global)
    else:
        _check_links(plan, sizes, machines, run)
        stretch = rounds_stretch(plan, desync.config_of(run), workers, seconds, sizes.parameters)
    return _outcome(plan, goal, sizes, method, machines, run, stretch)


def replica_bytes(goal: PretrainGoal, sizes: Sizes) -> float:
    """Memory of one that trains."""
    return 4 * (TENSORS_KEPT * sizes.parameters + goal.tokens_per_step * sizes.saved_values_per_token)


def _check_links(plan: PlanFile, sizes: Sizes, machines: Sequence[Machine], run: RunFile) -> None:
    """Refuse links that are too thin for any round, as plain bytes over rates tell without trying.

    Raises:
        ValueError: names the link, and what it would have to have.
    """
    never_waits = desync.config_of(run).is_free_running
    step_seconds = run.simulation.step_seconds
    most = STEPS_PER_EXCHANGE_MAX * step_seconds if never_waits else ROUND_SECONDS_MAX
    num_bytes = (BYTES_PER_VALUE_CODED if never_waits else BYTES_PER_VALUE) * sizes.parameters
    sites = list(dict.fromkeys(one.site for one in machines))
    for site in sites[1:]:
        others = [one for one in sites if one != site]
        other = max(others, key=lambda one: plan.link(site, one).bytes_per_second)
        link = plan.link(site, other)
        seconds = num_bytes / link.bytes_per_second
        if seconds <= most:
            continue
        why = "which is longer than any round may take"
        if never_waits:
            why = (
                f"as long as {seconds / step_seconds:,.0f} local steps, and nobody has shown that averaging after more "
                f"than {STEPS_PER_EXCHANGE_MAX:,} works"
            )
        raise ValueError(
            f"the model's values take {time_of(seconds)} to cross the link between {site} and {other} once, {why}: it "
            f"has {number_of(link.bandwidth_mbit)} Mbit/s and needs {number_of(link.bandwidth_mbit * seconds / most)}"
        )


def machines_that_fit(plan: PlanFile, goal: PretrainGoal, sizes: Sizes, site: str = "") -> list[Machine]:
    """Those with memory for a replica, of one site or of all.

    Raises:
        ValueError: there is none, and by how much.
    """
    machines = [one for one in machines_of(plan) if site in ("", one.site)]
    if not machines:
        raise ValueError(f"there is no machine in {site}")
    needed = replica_bytes(goal, sizes)
    what = f"a replica with gradients, moments and averages, and a step of {goal.tokens_per_step:,} tokens,"
    return machines_with_memory(machines, lambda _: needed, what, "lower goal.batch_size, or add memory")


def places_of(machines: Sequence[Machine], sizes: Sizes) -> list[WorkerPlace]:
    """As workers, with speeds relative to the fastest."""
    speeds = [one.train_tokens_per_second(sizes.parameters) for one in machines]
    return [WorkerPlace(one.name, one.site, speed / max(speeds)) for one, speed in zip(machines, speeds, strict=True)]


def run_tables(
    plan: PlanFile, goal: PretrainGoal, sizes: Sizes, machines: Sequence[Machine], algorithm: str
) -> dict[str, Any]:
    """The run file."""
    fastest = max(one.train_tokens_per_second(sizes.parameters) for one in machines)
    return {
        "run": {"kind": "pretrain", "name": "planned", "folder": "planned"},
        "model": dict(sizes.table),
        "training": {"sequence_length": goal.sequence_length, "batch_size": goal.batch_size, "tokens": goal.tokens},
        "algorithm": {"name": algorithm},
        "simulation": {"step_seconds": goal.tokens_per_step / fastest},
        **sites_tables(plan, places_of(machines, sizes)),
    }


def _outcome(
    plan: PlanFile,
    goal: PretrainGoal,
    sizes: Sizes,
    method: Sentence,
    machines: Sequence[Machine],
    run: RunFile,
    stretch: Stretch,
) -> Outcome:
    num_steps = goal.tokens / goal.tokens_per_step
    seconds = num_steps / stretch.steps_per_second
    return job_outcome(
        plan,
        method=method,
        machines=machines,
        job=Job(seconds, goal.tokens, scaled(stretch.bytes_per_step, num_steps), stretch.busy_share, goal.days_max),
        start=_run_text(plan, goal, sizes, machines, run, stretch),
    )


def _run_text(
    plan: PlanFile, goal: PretrainGoal, sizes: Sizes, machines: Sequence[Machine], run: RunFile, stretch: Stretch
) -> str:
    tables = run_tables(plan, goal, sizes, machines, run.algorithm.name)
    patience = ROUNDS_PER_EXCHANGE * stretch.round_seconds
    if not run.algorithm.is_hierarchical and patience > EXCHANGE_SECONDS_USUAL:
        tables["algorithm"]["rounds"] = {"exchange_seconds_max": round(patience)}
    return run_text(tables, "[data] is yours to choose: see the documentation")
