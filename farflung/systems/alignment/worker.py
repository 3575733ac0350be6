"""A rollout worker: it samples what it is given with the newest weights that it has, and sends what is finished.

It never waits for one thing alone. While it computes, chunks of the next version come in; between two slices of
decoding it installs them, sends answers and asks for more. Whatever it asks is asked again after a silence, and what it
has finished it keeps until the hub has it, so that either side may die at any moment.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from farflung.systems.alignment.asking import Asking
from farflung.systems.alignment.charges import NO_CHARGES, Charges
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.installing import renew
from farflung.systems.alignment.leases import Key
from farflung.systems.alignment.messages import (
    HUB_ACTOR,
    SEEDER_ACTOR,
    WORKER_ACTOR,
    AlignAsk,
    AlignChunk,
    AlignJoin,
    AlignJoinAgain,
    AlignLeases,
    AlignNews,
    AlignPath,
    AlignTaken,
    AlignWelcome,
)
from farflung.systems.alignment.outbox import Outbox
from farflung.systems.alignment.pace import TOKENS_PER_SLICE, Pace, WorkerReport
from farflung.systems.alignment.protocols import Policy
from farflung.systems.alignment.rollouts import Failure, Rollout
from farflung.systems.alignment.seeder import Seeder
from farflung.systems.alignment.subscription import Subscription
from farflung.wire.message import NoSuchActor, Refusal
from farflung.world.address import Address, PeerId
from farflung.world.doors import Failed, World
from farflung.world.errors import Refused, Unreachable
from farflung.world.host import Host
from farflung.world.mailbox import Mailbox, PeerLost
from farflung.world.version import __version__


@dataclass(frozen=True, slots=True)
class _Computed:
    what: Literal["advance", "renew"]
    began_at: float
    result: Any


class Worker:
    """One worker's life. `await run()`, in the process that computes."""

    def __init__(
        self,
        world: World,
        config: AlignmentConfig,
        policy: Policy,
        *,
        name: str,
        hub: PeerId,
        run: bytes,
        num_answers_max: int = 64,
        tokens_per_slice: int = TOKENS_PER_SLICE,
        charges: Charges = NO_CHARGES,
    ) -> None:
        """`num_answers_max`: sampled at the same time. `charges`: of the simulator.

        Raises:
            ValueError: what lies on this disk was not written by this program.
        """
        self.weights = Subscription(world, config, hub, name)
        self.report = WorkerReport()
        self.outbox = Outbox(world, name)
        self._world = world
        self._config = config
        self._policy = policy
        self._name = name
        self._hub = hub
        self._run = run
        self._num_answers_max = num_answers_max
        self._tokens_per_slice = tokens_per_slice
        self._charges = charges
        self._running: dict[Key, None] = {}
        self._is_computing = False
        self._is_in = False
        self._is_over = False
        self._asking = Asking(config.silence_seconds)
        self._heard_at = world.clock.now()
        self._pace = Pace()
        self._why_idle = "hub"

    @property
    def answers_per_second(self) -> float:
        """Of decoding, smoothed; 0 until the first answer."""
        return self._pace.answers_per_second

    async def run(self) -> WorkerReport:
        """Until the hub says that the run is over.

        Raises:
            Refused: the hub will not have this worker.
            Unreachable: nothing was heard of the hub for too long.
        """
        seeder = Host(Seeder(), self._world, SEEDER_ACTOR)
        try:
            with Mailbox(self._world, WORKER_ACTOR) as mailbox:
                while not (self._is_over and not self._is_computing):
                    self._act(mailbox)
                    await self._hear(mailbox)
        finally:
            seeder.stop()
        return self.report

    async def _hear(self, mailbox: Mailbox) -> None:
        now, is_idle, why = self._world.clock.now(), not self._is_computing, self._why_idle
        received = await mailbox.receive(self._deadline())
        if is_idle:
            idle = self.report.idle_seconds
            idle[why] = idle.get(why, 0.0) + self._world.clock.now() - now
        if received is not None:
            self._take(mailbox, *received)

    def _deadline(self) -> float:
        if self._is_over:
            return float("inf")  # what is being computed ends, and then all does
        if not self._is_in:
            return self._asking.due_at
        return min(self._asking.due_at, self.weights.deadline(), self.outbox.next_due_at())

    # Acting

    def _act(self, mailbox: Mailbox) -> None:
        now = self._world.clock.now()
        if now - self._heard_at > self._config.wait_seconds_max:
            raise Unreachable(self._hub, f"nothing was heard of the trainer for {now - self._heard_at:.0f} s")
        if self._is_in:
            for message in self.outbox.due(now, self._config.silence_seconds):
                self._send(mailbox, message)
            self.weights.act(mailbox.send, now)
        if not self._is_computing and not self._is_over:
            self._compute_next(mailbox)
        self._ask_hub(mailbox, now)

    def _ask_hub(self, mailbox: Mailbox, now: float) -> None:
        """One question at a time: let me in, or give me tasks. The latter also says what is still being sampled."""
        if now < self._asking.due_at or self._is_over:
            return
        number = self._asking.ask(now)
        if not self._is_in:
            return self._send(mailbox, AlignJoin(name=self._name, code=__version__, run=self._run, ask=number))
        room = max(0, self._num_answers_max - len(self._running)) if self.weights.held.tensors else 0
        question = AlignAsk(
            name=self._name,
            version=self.weights.held.number,
            num_answers=room,
            answers_per_second=self.answers_per_second,
            round_trip_seconds=self._asking.round_trip_seconds,
            running=tuple(sorted({*self._running, *self.outbox.keys()})),
            ask=number,
        )
        self._send(mailbox, question)

    def _send(self, mailbox: Mailbox, message: object) -> None:
        mailbox.send(Address(self._hub, HUB_ACTOR), message)

    # Hearing

    def _take(self, mailbox: Mailbox, source: Address, message: object) -> None:
        match message:
            case _Computed():
                self._take_result(mailbox, message)
            case AlignChunk():
                self.weights.take_chunk(source.peer, message)
            case PeerLost():
                self._take_loss(source.peer)
            case NoSuchActor(actor=actor) if actor == SEEDER_ACTOR:
                self.weights.lost(source.peer)
            case _ if source.peer == self._hub:
                self._heard_at = self._world.clock.now()
                self._take_of_hub(message)
            case _:
                pass

    def _take_loss(self, peer: PeerId) -> None:
        self.weights.lost(peer)
        if peer == self._hub:
            self.outbox.send_all_again(self._world.clock.now() + self._config.ask_again_seconds)
            self._ask_again_in(self._config.ask_again_seconds)

    def _take_of_hub(self, message: object) -> None:
        match message:
            case AlignWelcome(version=version) if self._asking.is_awaited(message.ask):
                self._is_in = True
                self._asking.anew()
                self.weights.newest = max(self.weights.newest, version)
            case AlignJoinAgain():
                self._is_in = False
                self._asking.anew()
                self.weights.hub_started_anew()
                self.outbox.send_all_again(self._world.clock.now())
            case NoSuchActor():
                self._ask_again_in(self._config.ask_again_seconds)
            case Refusal(reason=reason, retry_after_seconds=seconds):
                if not seconds:
                    raise Refused(self._hub, reason)
                self._ask_again_in(seconds)
            case AlignNews(version=version):
                self.weights.newest = max(self.weights.newest, version)
                self._asking.soon()
            case AlignTaken():
                self._take_verdicts(message)
            case AlignLeases() if self._asking.is_awaited(message.ask):
                self._take_tasks(message)
            case AlignPath():
                self.weights.take_path(message)
            case _:
                pass

    def _ask_again_in(self, seconds: float) -> None:
        self._asking.anew(self._world.clock.now() + seconds)

    def _take_verdicts(self, message: AlignTaken) -> None:
        num_answers = self.outbox.taken(message.batch)
        if num_answers:
            self.report.num_refused += len(message.refused)
            self.report.num_taken += num_answers - len(message.refused)
            if message.refused:
                self._asking.soon()

    def _take_tasks(self, message: AlignLeases) -> None:
        self._is_over = message.is_over
        self.weights.newest = max(self.weights.newest, message.version)
        dropped = dict.fromkeys(message.dropped)
        for prompt in dict.fromkeys(prompt for prompt, _ in message.dropped):
            mine = [key for key in self._running if key[0] == prompt]
            if mine and all(key in dropped for key in mine):
                self._policy.abandon(prompt)
                self._running = {key: None for key in self._running if key[0] != prompt}
        for task in message.tasks:
            self._policy.begin(task)
            self._running.update({(task.prompt, member): None for member in task.members})
        self._why_idle = "weights" if self.weights.is_behind else "tasks"
        self._asking.answered(self._world.clock.now(), message.retry_after_seconds)

    # Computing

    def _compute_next(self, mailbox: Mailbox) -> None:
        """Install what has come, or decode a slice of what is under way."""
        if self.weights.fetched is not None:
            tolerance, held = self._config.weights.canary_tolerance, self.weights.held
            arguments = self._policy, self.weights.fetched, held, self.weights.read_chunk, tolerance
            self._compute(mailbox, "renew", renew, *arguments, seconds=self._charges.install_seconds)
        elif self._running:
            seconds = self._tokens_per_slice * self._charges.seconds_of_token(len(self._running))
            self._compute(mailbox, "advance", self._policy.advance, self._tokens_per_slice, seconds=seconds)

    def _compute(
        self,
        mailbox: Mailbox,
        what: Literal["advance", "renew"],
        function: Callable[..., object],
        *arguments: object,
        seconds: float = 0.0,
    ) -> None:
        self._is_computing = True
        began_at = self._world.clock.now()

        def done(result: object) -> None:
            mailbox.deliver(mailbox.address, _Computed(what, began_at, result))

        self._world.compute.submit(done, function, *arguments, seconds=seconds)

    def _take_result(self, mailbox: Mailbox, done: _Computed) -> None:
        self._is_computing = False
        if done.what == "renew":
            self.weights.renewed(mailbox.send, done.result)
            if self._running:
                self._asking.soon()
            else:
                self._asking.anew()  # what is out was asked with older weights
        elif isinstance(done.result, Failed):
            raise done.result.error
        else:
            self._take_finished(done.result, self._world.clock.now() - done.began_at)

    def _take_finished(self, finished: Sequence[Rollout | Failure], seconds: float) -> None:
        rollouts = tuple(one for one in finished if isinstance(one, Rollout) and one.key in self._running)
        failures = tuple(one for one in finished if isinstance(one, Failure))
        self._pace.add(len(rollouts), seconds)
        failed = [(failure.prompt, member) for failure in failures for member in failure.members]
        for key in [*(one.key for one in rollouts), *failed]:
            self._running.pop(key, None)
        self.report.num_sampled += len(rollouts)
        self.report.num_tokens += sum(len(one.answer_tokens) for one in rollouts)
        if rollouts or failures:
            self.outbox.add(rollouts, failures)
            self._asking.soon()
