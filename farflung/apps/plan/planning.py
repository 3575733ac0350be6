"""A plan from beginning to end: candidates are tried, ranked, and of the best it is found out what would help them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from farflung.apps.plan import serving
from farflung.apps.plan.changes import changes_for
from farflung.apps.plan.outcome import Candidate, Outcome, ranked
from farflung.apps.plan.plan_file import PlanFile, ServeGoal
from farflung.apps.plan.sizes import Sizes
from farflung.apps.plan.words import Sentence, said

GAIN_MIN = 0.02
NUM_IMPROVED = 2
"""Rows of which it is found out what would help them."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer."""

    plan: PlanFile
    sizes: Sizes
    outcomes: tuple[Outcome, ...]
    """Best first."""
    left_out: tuple[tuple[Sentence, str], ...]
    """What cannot work here, and why."""


def make_plan(plan: PlanFile, sizes: Sizes, tell: Callable[[str], None] = lambda sentence: None) -> Planned:
    """Try everything.

    Raises:
        ValueError: nothing can work; the reason is that of what comes nearest.
    """
    candidates = candidates_of(plan, sizes)
    found: list[tuple[Candidate, Outcome]] = []
    left_out: list[tuple[Sentence, str]] = []
    for candidate in candidates:
        tell(candidate.method())
        try:
            found.append((candidate, candidate.try_on(plan)))
        except ValueError as error:
            left_out.append((candidate.method, str(error)))
    if not found:
        raise ValueError(f"this goal cannot be reached: {left_out[0][1]}")
    by_outcome = {id(outcome): candidate for candidate, outcome in found}
    order = ranked([outcome for _, outcome in found], plan.kind)
    best = [improved(plan, by_outcome[id(one)], one, tell) for one in order[:NUM_IMPROVED]]
    return Planned(plan, sizes, (*best, *order[NUM_IMPROVED:]), tuple(left_out))


def candidates_of(plan: PlanFile, sizes: Sizes) -> list[Candidate]:
    """All that is tried for the plan's goal."""
    assert isinstance(plan.goal, ServeGoal)
    return serving.candidates(plan, plan.goal, sizes)


def improved(plan: PlanFile, candidate: Candidate, now: Outcome, tell: Callable[[str], None]) -> Outcome:
    """With the one change that gains most, found by trying each."""
    best: tuple[float, Sentence] = (GAIN_MIN, said("change none"))
    for change in changes_for(plan, now):
        tell(f"{candidate.method()}: {change.key}")
        try:
            then = candidate.try_on(change.plan)
        except ValueError:
            continue
        gain = then.tokens_per_second / now.tokens_per_second - 1
        if gain >= best[0]:
            best = (gain, said(change.key, gain=gain, what="tokens/s", **change.values))
    return replace(now, change=best[1])


def verdict(planned: Planned) -> Sentence:
    """The answer in one sentence."""
    best, goal = planned.outcomes[0], planned.plan.goal
    assert isinstance(goal, ServeGoal)
    values = {"method": best.method(), "rate": best.tokens_per_second, "wanted": goal.tokens_per_second}
    if best.meets:
        return said("met serve", **values)
    return said("missed serve", **values, short=1 - best.tokens_per_second / goal.tokens_per_second)


def assumptions(kind: str) -> Sequence[Sentence]:
    """What the answer rests on."""
    return [said("simulated"), said("undisturbed"), *([said("no loss")] if kind != "serve" else [])]
