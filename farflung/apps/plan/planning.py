"""A plan from beginning to end: candidates are tried, ranked, and of the best it is found out what would help them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from farflung.apps.plan import aligning, finetuning, pretraining, serving
from farflung.apps.plan.changes import changes_for
from farflung.apps.plan.goals import AlignGoal, FinetuneGoal, PretrainGoal, ServeGoal
from farflung.apps.plan.outcome import Candidate, Outcome, ranked
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.sizes import Sizes
from farflung.apps.plan.units import time_of
from farflung.apps.plan.words import Sentence, said

GAIN_MIN = 0.02


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer."""

    plan: PlanFile
    sizes: Sizes
    outcomes: tuple[Outcome, ...]
    """Best first."""
    left_out: tuple[tuple[Sentence, str], ...]
    """What cannot work here, and why."""


Try = tuple[Candidate, PlanFile]
Tried = Outcome | str
"""An outcome, or why it cannot work."""


def try_one(one: Try) -> Tried:
    """In this process."""
    candidate, plan = one
    try:
        return candidate.try_on(plan)
    except ValueError as error:
        return str(error)


TryAll = Callable[[Sequence[Try]], Iterable[Tried]]
"""Gives what became of each, in order."""


def one_by_one(tries: Sequence[Try]) -> Iterator[Tried]:
    """All of them, here."""
    return map(try_one, tries)


def make_plan(plan: PlanFile, sizes: Sizes, try_all: TryAll = one_by_one) -> Planned:
    """Try everything.

    Raises:
        ValueError: nothing can work; the reason is that of what comes nearest.
    """
    candidates = candidates_of(plan, sizes)
    found: list[tuple[Candidate, Outcome]] = []
    left_out: list[tuple[Sentence, str]] = []
    for candidate, tried in zip(candidates, try_all([(one, plan) for one in candidates]), strict=True):
        if isinstance(tried, Outcome):
            found.append((candidate, tried))
        else:
            left_out.append((candidate.method, tried))
    if not found:
        raise ValueError(f"this goal cannot be reached: {left_out[0][1]}")
    by_outcome = {id(outcome): candidate for candidate, outcome in found}
    best, *others = ranked([outcome for _, outcome in found], plan.kind)
    best = improved(plan, by_outcome[id(best)], best, try_all)
    return Planned(plan, sizes, (best, *others), tuple(left_out))


def candidates_of(plan: PlanFile, sizes: Sizes) -> list[Candidate]:
    """All that is tried for the plan's goal."""
    match plan.goal:
        case ServeGoal() as goal:
            return serving.candidates(plan, goal, sizes)
        case PretrainGoal() as goal:
            return pretraining.candidates(plan, goal, sizes)
        case FinetuneGoal() as goal:
            return finetuning.candidates(plan, goal, sizes)
        case AlignGoal() as goal:
            return aligning.candidates(plan, goal, sizes)


def improved(plan: PlanFile, candidate: Candidate, now: Outcome, try_all: TryAll) -> Outcome:
    """With the one change that gains most, found by trying each."""
    best: tuple[float, Sentence] = (GAIN_MIN, said("change none"))
    changes = changes_for(plan, now)
    for change, then in zip(changes, try_all([(candidate, change.plan) for change in changes]), strict=True):
        if isinstance(then, Outcome):
            gain = then.tokens_per_second / now.tokens_per_second - 1
            if gain >= best[0]:
                best = (gain, said(change.key, gain=gain, what="tokens/s", **change.values))
    return replace(now, change=best[1])


def verdict(planned: Planned) -> Sentence:
    """The answer in one sentence."""
    best, goal = planned.outcomes[0], planned.plan.goal
    if not isinstance(goal, ServeGoal):
        taken = {"method": best.method, "time": time_of(best.seconds)}
        if best.meets or goal.days_max is None:
            return said("best job", **taken)
        more = best.seconds / 86400 / goal.days_max
        return said("missed job", **taken, days=goal.days_max, more=more)
    values = {"method": best.method, "rate": best.tokens_per_second, "wanted": goal.tokens_per_second}
    if best.meets:
        return said("met serve", **values)
    return said("missed serve", **values, short=1 - best.tokens_per_second / goal.tokens_per_second)


def assumptions(plan: PlanFile, sizes: Sizes) -> Sequence[Sentence]:
    """What the answer rests on."""
    match plan.goal:
        case ServeGoal():
            own = []
        case PretrainGoal():
            own = [said("no loss")]
        case FinetuneGoal() as goal:
            own = finetuning.assumptions(goal)
        case AlignGoal() as goal:
            own = aligning.assumptions(goal, sizes)
    return [*plan.remarks, said("simulated"), said("undisturbed"), *own]
