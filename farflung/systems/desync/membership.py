"""A worker as a member of its run: how it gets the state, arrives at a round, and takes in what became of it."""

from collections.abc import Callable

from farflung.learn.learner import Descended
from farflung.learn.parameters import fingerprint
from farflung.learn.shards import ORDER
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.correspondence import Correspondence
from farflung.systems.desync.giving import Fetch
from farflung.systems.desync.learner import Learner
from farflung.systems.desync.messages import WORKER, Assignment, Dealt, SyncArrive, SyncJoin
from farflung.systems.desync.participation import Committed, Participation, Stale
from farflung.systems.desync.progress import Stretch, WorkerReport
from farflung.systems.desync.replica import Replica
from farflung.systems.desync.snapshots import Snapshot
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.effects import Send
from farflung.world.mailbox import Mailbox


class Membership:
    """What both kinds of loops, blocking and overlapped, have in common."""

    assignment: Assignment
    """What to do until the next round."""

    def __init__(
        self,
        world: World,
        mailbox: Mailbox,
        replica: Replica,
        config: DesyncConfig,
        coordinator: Address,
        *,
        site: str,
        step_seconds: float,
        steps_per_second: float,
        report: WorkerReport,
        on_round: Callable[[WorkerReport], None],
    ) -> None:
        self.world = world
        self.config = config
        self.replica = replica
        self.step_seconds = step_seconds
        self.since = Stretch()
        self.is_stopping = False
        """Whether to leave as soon as that loses nothing."""
        self.report = report
        self.talk = Correspondence(world, mailbox, coordinator, replica, config)
        self.coordinator = coordinator
        self._site = site
        self._steps_per_second = steps_per_second
        self._on_round = on_round
        self._life = world.random(WORKER).getrandbits(48)
        self._began_at = world.clock.now()
        self._sent = Stretch()
        self._longest_wait_seconds = 0.0
        self._peers: list[PeerId] = []

    @property
    def learner(self) -> Learner:
        """Whose steps these are."""
        return self.replica.learner

    @property
    def now(self) -> float:
        """Of the monotonic clock."""
        return self.world.clock.now()

    def stop(self) -> None:
        """Make no more steps than a round needs, and leave once those made are in one."""
        self.is_stopping = True
        self.talk.wake()

    @property
    def is_at_rest(self) -> bool:
        """Whether one that is stopping may leave: all its steps are in rounds, or nobody is there to form one."""
        is_settled = self.talk.participation is None and not self.since.num_steps
        return self.is_stopping and (is_settled or self.talk.is_coordinator_lost)

    def _join_message(self) -> SyncJoin:
        data = None if self.replica.data is None else self.replica.data.data
        return SyncJoin(
            run=self.config.fingerprint,
            life=self._life,
            round=self.replica.round,
            num_credited=self.replica.num_credited,
            first=self.replica.first,
            fingerprint=fingerprint({"agreed": self.replica.agreed}) if not self.replica.round else b"",
            site=self._site,
            steps_per_second=self._steps_per_second,
            num_values=len(self.replica.agreed),
            num_shards=0 if data is None else data.num_shards,
            order=0 if data is None else data.cursor[ORDER],
        )

    async def join(self) -> None:
        """Become a member that has the state of the present round.

        Raises:
            Refused: the coordinator does not take this worker, and why.
        """
        ask_again = self.config.rounds.ask_again_seconds
        while True:
            self.talk.welcome = None
            join = [Send(self.coordinator, self._join_message())]
            await self.talk.ask_until(join, lambda: self.talk.welcome is not None, ask_again)
            assert self.talk.welcome is not None
            self.assignment = self.talk.welcome.assignment
            if self.talk.welcome.donor is None:
                await self._take_deal(self.talk.welcome.dealt)
                return
            await self._take_state(self.talk.welcome.donor)

    async def _take_state(self, donor: Address) -> None:
        """Fetch and load the state of a member, unless it falls silent."""
        fetch = self.talk.fetch = Fetch(donor, self.replica.tensors(), self.config.part_values_max)
        num_missing = -1
        while not fetch.is_done and fetch.num_missing != num_missing:
            num_missing = fetch.num_missing
            self.talk.send(fetch.start())
            await self.talk.until(lambda: fetch.is_done, deadline=self.now + 2 * self.config.rounds.ask_again_seconds)
        self.talk.fetch = None
        if fetch.is_done:
            await self.talk.compute(self.replica.load, fetch.state, seconds=0.0)
            self.since = Stretch()
            self.report.round = self.replica.round
            self.report.num_states_taken += 1
            self.world.note(WORKER, f"took the state of round {self.replica.round} from {donor}")

    async def _take_deal(self, dealt: Dealt) -> None:
        """Go on with these data; steps on data that are another's by now are forgotten."""
        data = self.replica.data
        if data is not None and data.is_void(dealt):
            if data.position.deal:
                self.world.note(WORKER, "forgets its steps since the last round: their data were dealt to others")
            await self.talk.compute(self.replica.forget_steps, seconds=0.0)
            self.since = Stretch()
        await self.talk.compute(self.replica.take, dealt, seconds=0.0)

    def count(self, descended: Descended, seconds: float) -> None:
        """Local steps were made."""
        self.since.add(descended, seconds)
        self.report.num_steps += descended.num_steps
        self.report.num_tokens += descended.num_tokens
        if self.since.seconds > 0:
            self._steps_per_second = self.since.num_steps / self.since.seconds

    def arrive(self, snapshot: Snapshot) -> Participation:
        """Begin this member's part in a round."""
        arrive = SyncArrive(
            round=self.replica.round,
            num_steps=self.since.num_steps,
            num_tokens=self.since.num_tokens,
            loss=self.since.loss,
            steps_per_second=self._steps_per_second,
            drift=self.replica.drift,
            bytes_per_second=self._measured(),
            deal=snapshot.position.deal,
            cursor=snapshot.position.cursor,
        )
        participation = Participation(
            self.config,
            self.talk.address,
            self.coordinator,
            self._join_message(),
            arrive,
            self.replica.lengths,
            snapshot,
            longest_wait_seconds=self._longest_wait_seconds,
        )
        self._sent = self.since
        self.talk.participation = participation
        self.talk.send(participation.start(self.now))
        return participation

    def _measured(self) -> dict[PeerId, float]:
        """Bandwidths towards the members of the last round, of those transfers that were large enough to tell."""
        if not self.config.chooses_codecs:
            return {}
        rates = {peer: self.world.network.bytes_per_second(peer) for peer in self._peers}
        return {peer: rate for peer, rate in rates.items() if rate is not None}

    def committed(self, outcome: Committed) -> None:
        """The outcome has been taken over: tell what became of the round."""
        self._close()
        self.assignment = outcome.assignment
        report = self.report
        report.exchanges[report.round] = outcome.exchange
        report.round = self.replica.round
        report.loss = self._sent.loss
        report.progress = outcome.assignment.progress_first
        report.num_members = len(outcome.members)
        self._peers = [one.peer for one in outcome.members if one != self.talk.address]
        report.num_bytes_sent = self.world.traffic.total(sent=True)
        report.seconds = self.now - self._began_at
        report.seconds_waiting = report.seconds - self.talk.busy_seconds
        self._on_round(report)

    async def stale(self, outcome: Stale) -> None:
        """The run went on without this member: take over the state of another."""
        self._close()
        self.assignment = outcome.assignment
        if outcome.donor is not None:
            await self.join()
        else:
            await self._take_deal(outcome.dealt)

    def _close(self) -> None:
        assert self.talk.participation is not None
        self._longest_wait_seconds = self.talk.participation.longest_wait_seconds
        self.talk.participation = None
