"""A worker: local steps, then a round, until the run's budget is spent.

blocking:     steps | round | steps | round | ...
overlapped:   steps | steps | steps | ...          a round runs beside the steps after its snapshot
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from farflung.learn.parameters import fingerprint
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.correspondence import Correspondence
from farflung.systems.desync.giving import Fetch
from farflung.systems.desync.learner import Descended, GradientLearner, Learner
from farflung.systems.desync.messages import WORKER, Assignment, SyncArrive, SyncJoin, SyncLeave
from farflung.systems.desync.participation import Committed, Participation, Stale
from farflung.systems.desync.replica import Replica, Snapshot
from farflung.world.address import Address
from farflung.world.doors import World
from farflung.world.effects import Send
from farflung.world.mailbox import Mailbox


@dataclass(slots=True)
class WorkerReport:
    """What a worker has done so far."""

    round: int = 0
    """Rounds of the run whose outcome it has."""
    loss: float = float("nan")
    """Mean over its steps before the newest round."""
    progress: float = 0.0
    """Share of the run's budget that is done."""
    num_steps: int = 0
    """Local steps, those of dropped rounds too."""
    num_tokens: int = 0
    num_bytes_sent: int = 0
    seconds: float = 0.0
    """Since it began."""
    seconds_waiting: float = 0.0
    """Of them, when its device had nothing to do."""
    num_members: int = 0
    """Of the newest round."""
    exchanges: dict[int, int] = field(default_factory=dict[int, int])
    """Number of the exchange with which each of its rounds was committed."""
    num_states_taken: int = 0
    """How often it took another's state: as a newcomer, or because the run had gone on without it."""


@dataclass(slots=True)
class Stretch:
    """Local steps since the last snapshot."""

    num_steps: int = 0
    num_tokens: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0

    def add(self, descended: Descended, seconds: float) -> None:
        """Count some steps."""
        self.num_steps += descended.num_steps
        self.num_tokens += descended.num_tokens
        self.loss_sum += descended.loss * descended.num_steps
        self.seconds += seconds

    @property
    def loss(self) -> float:
        """Mean over the steps."""
        return self.loss_sum / self.num_steps if self.num_steps else float("nan")


class Worker:
    """One member of a run; `await Worker(...).run()` returns its report when the run is over."""

    def __init__(
        self,
        world: World,
        learner: Learner,
        config: DesyncConfig,
        coordinator: Address,
        *,
        site: str = "site",
        step_seconds: float = 0.0,
        steps_per_second: float = 0.0,
        on_round: Callable[[WorkerReport], None] = lambda report: None,
    ) -> None:
        """`step_seconds` is what the simulator charges for one local step; `steps_per_second` a speed measured before
        the run (0: unknown, then all begin alike); `on_round` is called after every round."""
        self._world = world
        self._learner = learner
        self._config = config
        self._coordinator = coordinator
        self._site = site
        self._step_seconds = step_seconds
        self._steps_per_second = steps_per_second
        self._on_round = on_round
        self.replica = Replica(learner, config)
        self.report = WorkerReport()
        self._life = world.random(WORKER).getrandbits(48)
        self._began_at = world.clock.now()
        self._since = Stretch()
        self._sent = Stretch()
        self._snapshot: Snapshot | None = None
        self._longest_wait_seconds = 0.0
        self._assignment: Assignment
        self._talk: Correspondence

    async def run(self) -> WorkerReport:
        """Take part until the run is over.

        Raises:
            Refused: the coordinator does not take this worker, and why.
        """
        values_max = self._config.part_values_max
        ask_again = self._config.rounds.ask_again_seconds
        with Mailbox(self._world, WORKER) as mailbox:
            self._talk = Correspondence(self._world, mailbox, self._coordinator, self.replica, values_max)
            await self._join()
            while self._assignment.due:
                await (self._overlapped_round() if self._config.is_overlapped else self._blocking_round())
            await self._talk.compute(self.replica.settle, seconds=0.0)
            leave = [Send(self._coordinator, SyncLeave())]
            await self._talk.ask_until(lambda: leave, lambda: self._talk.has_farewell, ask_again)
        return self.report

    # Becoming a member

    def _join_message(self) -> SyncJoin:
        return SyncJoin(
            run=self._config.fingerprint,
            life=self._life,
            round=self.replica.round,
            fingerprint=fingerprint(self.replica.agreed),
            site=self._site,
            steps_per_second=self._steps_per_second,
        )

    async def _join(self) -> None:
        """Until this worker has the state of the present round."""
        while True:
            self._talk.welcome = None
            join = [Send(self._coordinator, self._join_message())]
            ask_again = self._config.rounds.ask_again_seconds
            await self._talk.ask_until(lambda: join, lambda: self._talk.welcome is not None, ask_again)  # noqa: B023
            assert self._talk.welcome is not None
            self._assignment = self._talk.welcome.assignment
            if self._talk.welcome.donor is None:
                return
            await self._take_state(self._talk.welcome.donor)

    async def _take_state(self, donor: Address) -> None:
        """Fetch and load the state of a member, unless it falls silent."""
        fetch = self._talk.fetch = Fetch(donor, self.replica.tensors(), self._config.part_values_max)
        patience = 4 * self._config.rounds.ask_again_seconds
        num_missing = -1
        while not fetch.is_done and fetch.num_missing != num_missing:
            num_missing = fetch.num_missing
            self._talk.send(fetch.start())
            await self._talk.until(lambda: fetch.is_done, deadline=self._world.clock.now() + patience)
        self._talk.fetch = None
        if fetch.is_done:
            await self._talk.compute(self.replica.load, fetch.state, seconds=0.0)
            self._since = Stretch()
            self.report.round = self.replica.round
            self.report.num_states_taken += 1
            self._world.note(WORKER, f"took the state of round {self.replica.round} from {donor}")

    # Local steps

    async def _steps(self, num_steps: int) -> None:
        if num_steps <= 0:
            return
        first, assignment = self._since.num_steps, self._assignment
        began = self._world.clock.now()
        descended = await self._talk.compute(
            self._learner.run,
            num_steps,
            lambda step: progress_at(assignment, first + step),
            seconds=num_steps * self._step_seconds,
        )
        self._count(descended, self._world.clock.now() - began)

    async def _gradients(self) -> None:
        learner: GradientLearner = self._learner  # type: ignore[assignment]
        began = self._world.clock.now()
        descended = await self._talk.compute(learner.compute_gradients, seconds=self._step_seconds)
        self._count(descended, self._world.clock.now() - began)

    def _count(self, descended: Descended, seconds: float) -> None:
        self._since.add(descended, seconds)
        self.report.num_steps += descended.num_steps
        self.report.num_tokens += descended.num_tokens

    # Rounds

    async def _blocking_round(self) -> None:
        if not self._config.averages_gradients:
            await self._steps(self._assignment.num_steps - self._since.num_steps)
        elif not self._since.num_steps:
            await self._gradients()
        participation = await self._arrive()
        await self._talk.until(lambda: participation.outcome is not None)
        await self._conclude(participation)

    async def _overlapped_round(self) -> None:
        while (under_way := self._talk.participation) is not None or self._since.num_steps < self._assignment.num_steps:
            if under_way is not None and under_way.outcome is not None:
                await self._conclude(under_way)
                if not self._assignment.due:
                    return
            else:
                await self._steps(1)
        await self._arrive()

    async def _arrive(self) -> Participation:
        assignment = self._assignment
        self._snapshot = await self._talk.compute(self.replica.snapshot, assignment.due, seconds=0.0)
        since = self._since
        if since.seconds > 0:
            self._steps_per_second = since.num_steps / since.seconds
        arrive = SyncArrive(
            round=self.replica.round,
            num_steps=since.num_steps,
            num_tokens=since.num_tokens,
            loss=since.loss,
            steps_per_second=self._steps_per_second,
        )
        participation = Participation(
            self._config,
            self._talk.address,
            self._coordinator,
            self._join_message(),
            arrive,
            self.replica.lengths,
            assignment.due,
            self._snapshot.values,
            self.replica.residual,
            longest_wait_seconds=self._longest_wait_seconds,
        )
        self._sent = since
        if self._config.is_overlapped:
            self._since, self._assignment = Stretch(), following(assignment)
        self._talk.participation = participation
        self._talk.send(participation.start(self._world.clock.now()))
        return participation

    async def _conclude(self, participation: Participation) -> None:
        self._talk.participation = None
        self._longest_wait_seconds = participation.longest_wait_seconds
        match participation.outcome:
            case Committed() as outcome:
                await self._apply(outcome)
            case Stale(assignment, donor):
                self._assignment = assignment
                if self._config.is_overlapped:
                    self._since.num_steps += self._sent.num_steps
                if donor is not None:
                    await self._join()
            case None:
                raise AssertionError("a round was concluded that has no outcome")

    async def _apply(self, outcome: Committed) -> None:
        assert self._snapshot is not None
        await self._talk.compute(self.replica.apply, outcome, self._snapshot, seconds=0.0)
        if self._config.averages_gradients:
            learner: GradientLearner = self._learner  # type: ignore[assignment]
            await self._talk.compute(learner.apply, self._assignment.progress_first, seconds=0.0)
        if not self._config.is_overlapped:
            self._since = Stretch()
        self._snapshot = None
        self._assignment = outcome.assignment
        self._tell(outcome)

    def _tell(self, outcome: Committed) -> None:
        report = self.report
        report.exchanges[report.round] = outcome.exchange
        report.round = self.replica.round
        report.loss = self._sent.loss
        report.progress = outcome.assignment.progress_first
        report.num_members = outcome.num_members
        report.num_bytes_sent = self._world.traffic.total(sent=True)
        report.seconds = self._world.clock.now() - self._began_at
        report.seconds_waiting = report.seconds - self._talk.busy_seconds
        self._on_round(report)


def progress_at(assignment: Assignment, step: int) -> float:
    """Share of the run's budget that is done at local step `step` of an assignment (which may be made longer)."""
    share = step / max(1, assignment.num_steps)
    progress = assignment.progress_first + share * (assignment.progress_last - assignment.progress_first)
    return min(1.0, progress)


def following(assignment: Assignment) -> Assignment:
    """What one expects to come after an assignment, until the coordinator has said it."""
    ahead = assignment.progress_last - assignment.progress_first
    last = min(1.0, assignment.progress_last + ahead)
    return Assignment(assignment.round + 1, assignment.num_steps, assignment.due, assignment.progress_last, last)
