"""The loop of a worker that never waits: one step after another, and rounds beside them.

A round begins with copies of what the replica was at the end of the last step; it may begin and end in the middle of
one. What it brings corrects those copies at once, and the learner before its next step: both are additions.

    device   step | step | step | step | ...          each begins with the corrections that have landed
    loop          '- arrive ... land -' arrive ...    from copies of the last boundary

Only at the end it waits: once the budget is spent, as far as a worker can tell, it makes no step that would be in vain.
"""

from collections.abc import Callable

from farflung.learn.learner import Descended
from farflung.systems.desync.membership import Membership
from farflung.systems.desync.messages import Dealt
from farflung.systems.desync.participation import Committed, Stale
from farflung.systems.desync.progress import Stretch, following, progress_at
from farflung.systems.desync.replica import Replica
from farflung.systems.desync.snapshots import Boundary, Correction


class Overlapped:
    """Runs one member until its run is over."""

    def __init__(self, member: Membership) -> None:
        self._member = member
        self._states = tuple(member.config.cadence.periods)
        self._boundary = Boundary(0, {})
        self._pending: list[Correction] = []
        """Landed since the present step began."""
        self._dealt: Dealt | None = None
        """Data to go on with at the next step."""
        self._round_at = 0.0
        """When a round that runs freely may begin."""

    async def run(self) -> None:
        """Until the run is over."""
        await self._begin_anew()
        while self._member.assignment.due and not self._member.is_at_rest:
            stale = await (self._pause() if self._is_idle else self._step())
            if stale is not None:
                await self._member.stale(stale)
                await self._begin_anew()

    async def _begin_anew(self) -> None:
        replica = self._member.replica
        self._boundary = await self._member.talk.compute(replica.boundary, self._states, seconds=0.0)
        self._pending, self._dealt = [], None

    @property
    def _is_idle(self) -> bool:
        """Whether to make no step before the next round has ended."""
        member = self._member
        may_wait = member.config.is_free_running or member.talk.participation is not None
        return may_wait and (member.is_stopping or self._is_spent)

    @property
    def _is_spent(self) -> bool:
        """Whether the steps that are not credited yet use up the budget, by the pace of the last round.

        There is always one of them, so that a budget which has been misjudged is used up all the same.
        """
        member, num_steps = self._member, self._member.since.num_steps
        return num_steps > 0 and progress_at(member.assignment, num_steps - 1) >= 1.0

    async def _pause(self) -> Stale | None:
        """Wait for what becomes of the round."""
        deadline = self._round_at if self._may_begin else None
        member = self._member
        await member.talk.until(lambda: self._has_outcome or self._is_due or member.is_at_rest, deadline=deadline)
        return self._rounds()

    async def _step(self) -> Stale | None:
        """One local step, and whatever rounds begin or end meanwhile; a round that went on without this worker."""
        member, talk = self._member, self._member.talk
        assignment, number = member.assignment, member.since.num_steps
        landed, self._pending = self._pending, []
        dealt, self._dealt = self._dealt, None
        began = member.now
        job = talk.begin(
            _advance,
            member.replica,
            landed,
            dealt,
            lambda step: progress_at(assignment, number + step),
            self._states,
            seconds=member.step_seconds,
        )
        stale: Stale | None = None
        while not talk.is_done(job):
            deadline = self._round_at if self._may_begin else None
            await talk.until(lambda: talk.is_done(job) or self._is_landed or self._is_due, deadline=deadline)
            stale = self._rounds() or stale
            if not member.assignment.due:
                return None  # what the step brings is not wanted any more
        descended, boundary = talk.take(job, member.now - began)
        if stale is not None:
            return stale
        member.replica.correct(boundary, self._pending)
        self._boundary = boundary
        member.count(descended, member.now - began)
        return self._rounds()

    @property
    def _is_landed(self) -> bool:
        participation = self._member.talk.participation
        return participation is not None and isinstance(participation.outcome, Committed)

    @property
    def _has_outcome(self) -> bool:
        participation = self._member.talk.participation
        return participation is not None and participation.outcome is not None

    @property
    def _may_begin(self) -> bool:
        """Whether only the time keeps a round that runs freely from beginning."""
        is_free = self._member.talk.participation is None
        return is_free and self._member.config.is_free_running and self._member.now < self._round_at

    @property
    def _is_due(self) -> bool:
        member = self._member
        if member.talk.participation is not None or not member.assignment.due or member.is_at_rest:
            return False
        if member.config.is_free_running:
            return member.now >= self._round_at
        return member.since.num_steps >= member.assignment.num_steps

    def _rounds(self) -> Stale | None:
        """End the round that has an outcome, begin the one that is due."""
        member = self._member
        participation = member.talk.participation
        if participation is not None and isinstance(participation.outcome, Stale):
            return participation.outcome
        if participation is not None and isinstance(participation.outcome, Committed):
            outcome = participation.outcome
            landed = member.replica.land(*outcome.landing)
            member.replica.correct(self._boundary, landed)
            self._pending += landed
            self._dealt = outcome.dealt
            member.committed(outcome)
        if self._is_due:
            self._round_at = member.now + member.config.round_seconds_min
            member.arrive(member.replica.bring(member.assignment.due, self._boundary))
            member.assignment = following(member.assignment, member.since.num_steps)
            member.since = Stretch()
        return None


def _advance(
    replica: Replica,
    landed: list[Correction],
    dealt: Dealt | None,
    progress_of_step: Callable[[int], float],
    states: tuple[str, ...],
) -> tuple[Descended, Boundary]:
    """On the device: corrections, a step, and copies of where it ends."""
    replica.apply(landed)
    replica.take(dealt)
    descended = replica.learner.run(1, progress_of_step)
    return descended, replica.boundary(states)
