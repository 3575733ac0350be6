"""A worker: a member of a run from the moment it joins until the run is over and nobody needs it any more."""

from collections.abc import Callable

from farflung.systems.desync.blocking import run_blocking
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.data import Data, DealtData
from farflung.systems.desync.learner import Learner
from farflung.systems.desync.membership import Membership
from farflung.systems.desync.messages import WORKER, SyncLeave
from farflung.systems.desync.overlapped import Overlapped
from farflung.systems.desync.progress import WorkerReport
from farflung.systems.desync.replica import Replica
from farflung.world.address import Address
from farflung.world.doors import World
from farflung.world.effects import Send
from farflung.world.mailbox import Mailbox


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
        data: Data | None = None,
        on_round: Callable[[WorkerReport], None] = lambda report: None,
    ) -> None:
        """`step_seconds` is what the simulator charges for one local step; `steps_per_second` a speed measured before
        the run (0: unknown, then all begin alike); `data`: what the learner draws from, for the coordinator to deal
        (None: the learner looks after its data itself); `on_round` is called after every round."""
        self._world = world
        self._config = config
        self._coordinator = coordinator
        self._site = site
        self._step_seconds = step_seconds
        self._steps_per_second = steps_per_second
        self._on_round = on_round
        self.replica = Replica(learner, config, None if data is None else DealtData(data))
        """What the run has agreed on, at any time."""
        self.report = WorkerReport()
        self._member: Membership | None = None

    def stop(self) -> None:
        """Let `run` return soon: when the steps made are in a round, or at once if there is no coordinator."""
        if self._member is not None:
            self._member.stop()

    async def run(self) -> WorkerReport:
        """Take part until the run is over, or until it is stopped.

        Raises:
            Refused: the coordinator does not take this worker, and why.
        """
        with Mailbox(self._world, WORKER) as mailbox:
            member = self._member = Membership(
                self._world,
                mailbox,
                self.replica,
                self._config,
                self._coordinator,
                site=self._site,
                step_seconds=self._step_seconds,
                steps_per_second=self._steps_per_second,
                report=self.report,
                on_round=self._on_round,
            )
            await member.join()
            await (Overlapped(member).run() if self._config.is_overlapped else run_blocking(member))
            talk, is_over = member.talk, not member.assignment.due
            if is_over:
                await talk.compute(self.replica.settle, seconds=0.0)
                self.report.has_result = self.replica.round == member.assignment.round
            ask_again = self._config.rounds.ask_again_seconds
            leave = [Send(self._coordinator, SyncLeave())]
            await talk.ask_until(
                leave, lambda: talk.has_farewell or (not is_over and talk.is_coordinator_lost), ask_again
            )
        return self.report
