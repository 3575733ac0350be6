"""The loop of a worker that waits for every round: steps | round | steps | round | ..."""

from typing import cast

from farflung.systems.desync.learner import GradientLearner
from farflung.systems.desync.membership import Membership
from farflung.systems.desync.participation import Committed, Stale
from farflung.systems.desync.progress import Stretch, progress_at
from farflung.systems.desync.snapshots import Snapshot


async def run_blocking(member: Membership) -> None:
    """Until the run is over, or a member that is stopping may leave."""
    while member.assignment.due and not member.is_at_rest:
        await _steps(member)
        snapshot = await member.talk.compute(_snapshot, member, member.assignment.due, seconds=0.0)
        participation = member.arrive(snapshot)
        await member.talk.until(lambda: participation.outcome is not None or member.is_at_rest)  # noqa: B023 - at once
        match participation.outcome:
            case Committed() as outcome:
                await member.talk.compute(_land, member, outcome, member.assignment.progress_last, seconds=0.0)
                member.committed(outcome)
                member.since = Stretch()
            case Stale() as outcome:
                await member.stale(outcome)
            case None:
                assert member.is_at_rest, "it waits for an outcome"


async def _steps(member: Membership) -> None:
    """Those of the assignment; after a round that was given up there are none left."""
    num_steps = member.assignment.num_steps - member.since.num_steps
    if num_steps <= 0:
        return
    began = member.now
    seconds = num_steps * member.step_seconds
    if member.config.averages_gradients:
        descended = await member.talk.compute(_gradient_learner(member).compute_gradients, seconds=seconds)
    else:
        first, assignment = member.since.num_steps, member.assignment
        descended = await member.talk.compute(
            member.learner.run, num_steps, lambda step: progress_at(assignment, first + step), seconds=seconds
        )
    member.count(descended, member.now - began)


def _snapshot(member: Membership, due: tuple[str, ...]) -> Snapshot:
    return member.replica.bring(due, member.replica.boundary(due))


def _land(member: Membership, outcome: Committed, progress: float) -> None:
    replica = member.replica
    replica.apply(replica.land(*outcome.landing))
    replica.take(outcome.dealt)
    if member.config.averages_gradients:
        _gradient_learner(member).apply(progress)


def _gradient_learner(member: Membership) -> GradientLearner:
    return cast(GradientLearner, member.learner)
