"""The trainer: a loop that takes a batch of groups from the hub, makes a step, and publishes what came out.

    wait for a batch ─> audit some ─> rewards ─> step ─> journal ─> publish, if it is due ─> checkpoint, if it is due

A step counts once its record is in the journal, and nothing of it is told to anybody before that. After a crash the
steps since the checkpoint are made again from the journal, with the same groups in the same order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from farflung.systems.alignment.audits import Audits
from farflung.systems.alignment.chain import Chain
from farflung.systems.alignment.charges import NO_CHARGES, Charges
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.deltas import NOTHING, Packed, Version, unpack_version, version_of
from farflung.systems.alignment.hub import Hub
from farflung.systems.alignment.ledger import Answer, Ledger, LedgerState
from farflung.systems.alignment.messages import HUB_ACTOR, SEEDER_ACTOR, TRAINER_ACTOR, Canary
from farflung.systems.alignment.protocols import Auditor, Environment, Learner
from farflung.systems.alignment.publishing import why_publish
from farflung.systems.alignment.records import Kept, Saved, Stepped, Trained, groups_of, pack_learner, replay, save
from farflung.systems.alignment.rollouts import Group
from farflung.systems.alignment.seeder import Seeder, chunk_key
from farflung.wire.tensor import MalformedTensor
from farflung.world.doors import Failed, World
from farflung.world.errors import FarflungError
from farflung.world.host import Host
from farflung.world.mailbox import Mailbox


class NoBatch(FarflungError):
    """No batch has come for so long that waiting on makes no sense; says what was waited for."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step came to."""

    version: int
    """After it."""
    metrics: Mapping[str, float]
    """The learner's."""
    groups: tuple[Group, ...]
    staleness: Mapping[int, int]
    """Answers of its batch by how many steps their oldest token was old."""
    idle_seconds: Mapping[str, float]
    """Waited before it, by what for: "workers", "weights" or "sampling"."""
    num_weights_bytes: int
    """Of the delta (or anchor) that was published after it; 0: none was."""


@dataclass(slots=True)
class _Published:
    """The newest version and what has happened since."""

    version: Version = NOTHING
    drift: float = 0.0
    recent: dict[int, Version] = field(default_factory=dict[int, Version])
    """By number: those that answers may still come from, if they are audited."""


@dataclass(frozen=True, slots=True)
class _Computed:
    result: object


class Trainer:
    """One trainer's life, with the hub beside it. `await run()`, in the process that computes."""

    def __init__(
        self,
        world: World,
        config: AlignmentConfig,
        learner: Learner,
        environment: Environment,
        *,
        run: bytes,
        auditor: Auditor | None = None,
        report: Callable[[StepReport], None] = lambda report: None,
        charges: Charges = NO_CHARGES,
    ) -> None:
        """`run`: fingerprint of what all must have in common. `charges`: of the simulator.

        Raises:
            ValueError: answers are to be audited and there is no auditor; what lies on the disk is damaged.
        """
        if config.audit_share and auditor is None:
            raise ValueError("audit_share is above 0 and there is nothing that audits: set it to 0")
        self._world = world
        self._config = config
        self._learner = learner
        self._environment = environment
        self._auditor = auditor
        self._report = report
        self._charges = charges
        self._kept = Kept.read(world)
        self.ledger = Ledger(config, self._kept.saved.ledger if self._kept.saved is not None else LedgerState())
        self.chain = Chain(config, self._kept.published)
        self.hub = Hub(world.network.peer, run, config, environment, self.ledger, self.chain, self._kept.num_records)
        self._published = _Published()
        self._hosts: list[Host] = []
        self._audits = Audits(config, environment, auditor, world.random("which answers are audited").random)
        self._idle_seconds: dict[str, float] = {}
        self._num_saved_steps = self.ledger.state.version

    async def run(self) -> None:
        """Until the run is over. The hub goes on until `close`, so that workers learn it.

        Raises:
            NoBatch: nothing came for too long.
            ValueError: the environment cannot judge any answer.
        """
        with Mailbox(self._world, TRAINER_ACTOR) as mailbox:
            await self._recover(mailbox)
            self._host = Host(self.hub, self._world, HUB_ACTOR)
            self._hosts = [self._host, Host(Seeder(), self._world, SEEDER_ACTOR)]
            while not self.ledger.is_over:
                await self._publish_if_due(mailbox)
                groups = await self._next_groups(mailbox)
                await self._step(mailbox, groups)
            await self._publish_if_due(mailbox, is_last=True)
            await self._save(mailbox)
            self._host.perform(self.hub.close())

    def close(self) -> None:
        """Take hub and chunks off the network."""
        for host in self._hosts:
            host.stop()

    # Coming back

    async def _recover(self, mailbox: Mailbox) -> None:
        found = self._kept.learner(self._world.store)
        if found is not None:
            await self._compute(mailbox, self._learner.restore, *found)
        for record in self._kept.records:
            if isinstance(record, Stepped):
                await self._compute(mailbox, self._learner.step, groups_of(self.ledger, record))
            replay(self.ledger, record)
        if self._kept.saved is not None or self._kept.records:
            num_answers = sum(len(members) for members in self.ledger.answers.values())
            self._note(f"goes on at step {self.ledger.state.version} with {num_answers} answers at hand")
        if self.chain.newest >= 0:
            for version in await self._compute(mailbox, self._unpack_chain):
                self._remember(version)

    def _unpack_chain(self) -> list[Version]:
        """All versions that answers may still come from; runs on the compute door."""
        versions = [NOTHING]
        for manifest in self.chain.whole_path():
            versions.append(unpack_version(manifest, versions[-1], self._read_chunk))
        return versions[1:]

    def _read_chunk(self, digest: bytes) -> bytes:
        data = self._world.store.read(chunk_key(digest))
        if data is None:
            raise MalformedTensor(f"chunk {digest.hex()[:12]} of the published weights is missing on this disk")
        return data

    # Batches

    async def _next_groups(self, mailbox: Mailbox) -> list[Group]:
        """Wait for a batch that passes the audit and can be judged."""
        while True:
            prompts = await self._wait(mailbox)
            if not await self._pass_audit(mailbox, [self.ledger.group(prompt) for prompt in prompts]):
                continue
            groups = [await self._judge(mailbox, prompt) for prompt in prompts]
            judged = [group for group in groups if group is not None]
            if len(judged) == len(prompts):
                return judged
            if not judged:
                raise ValueError(
                    f"no answer of a whole batch can be judged ({self._why_not_judged}): correct the reward function"
                )

    async def _wait(self, mailbox: Mailbox) -> list[int]:
        begun_at = now = self._world.clock.now()
        while (prompts := self.ledger.batch(now)) is None:
            word, sentence = self.hub.why_waiting(now)
            if now - begun_at >= self._config.wait_seconds_max:
                raise NoBatch(f"no batch has come for {now - begun_at:.0f} s: {sentence}")
            await mailbox.receive(now + self._config.ask_again_seconds)
            since, now = now, self._world.clock.now()
            self._idle_seconds[word] = self._idle_seconds.get(word, 0.0) + now - since
        return prompts

    async def _pass_audit(self, mailbox: Mailbox, groups: list[tuple[Answer, ...]]) -> bool:
        """Check what is due; whoever sent a lie is banned. False: the batch is not the same any more."""
        weights = {number: version.tensors for number, version in self._published.recent.items()}
        for answer in (answer for group in groups for answer in group):
            for check in self._audits.due(answer, weights):
                reason = await self._compute(mailbox, check)
                if reason is not None:
                    self._host.perform(self.hub.ban(answer.worker, f"prompt {answer.rollout.prompt}: {reason}"))
                    return False
        return True

    async def _judge(self, mailbox: Mailbox, prompt: int) -> Group | None:
        """A group with its rewards; None if they cannot be computed: the prompt is given up then."""
        rollouts = tuple(answer.rollout for answer in self.ledger.group(prompt))
        result = await self._computed(mailbox, self._rewards, rollouts)
        if isinstance(result, Failed):
            self._why_not_judged = f"its reward failed with {type(result.error).__name__}: {result.error}"
            self._host.perform(self.hub.give_up(prompt, self._why_not_judged))
            return None
        return Group(prompt, rollouts, result)

    def _rewards(self, rollouts: tuple[Any, ...]) -> tuple[float, ...]:
        return tuple(float(self._environment.reward(rollout)) for rollout in rollouts)

    # Steps

    async def _step(self, mailbox: Mailbox, groups: list[Group]) -> None:
        metrics = await self._compute(mailbox, self._learner.step, groups, seconds=self._charges.step_seconds)
        trained = tuple(
            Trained(group.prompt, tuple(rollout.member for rollout in group.rollouts), group.rewards)
            for group in groups
        )
        before, version = dict(self.ledger.state.staleness), self.ledger.state.version + 1
        self._host.perform(self.hub.stepped(Stepped(version, trained)))
        self._audits.forget(self.ledger.is_closed)
        self._published.drift += metrics.get("drift", 0.0)
        num_bytes = await self._publish_if_due(mailbox, is_last=self.ledger.is_over)
        idle_seconds, self._idle_seconds = self._idle_seconds, {}
        after = self.ledger.state.staleness
        staleness = {lag: after[lag] - before.get(lag, 0) for lag in after if after[lag] > before.get(lag, 0)}
        self._report(StepReport(version, metrics, tuple(groups), staleness, idle_seconds, num_bytes))
        if version - self._num_saved_steps >= self._config.steps_per_checkpoint:
            await self._save(mailbox)

    async def _save(self, mailbox: Mailbox) -> None:
        packed, state = await self._compute(mailbox, lambda: pack_learner(*self._learner.state()))
        saved = Saved(self.hub.num_records, self.ledger.saved(), packed.manifest, state)
        save(self._world, saved, packed.chunks)
        self._num_saved_steps = self.ledger.state.version

    # Weights

    async def _publish_if_due(self, mailbox: Mailbox, *, is_last: bool = False) -> int:
        """Publish, if it is time to; how many bytes others fetch for it."""
        version = self.ledger.state.version
        num_steps = version - self.chain.newest
        reason = why_publish(num_steps, self._published.drift, len(self.ledger.leases), self._config.publish)
        if num_steps == 0 or (reason is None and not is_last and self.chain.newest >= 0):
            return 0
        packed, new = await self._compute(mailbox, self._pack, version, seconds=self._charges.pack_seconds)
        self._remember(new)
        self._host.perform(self.hub.publish(packed))
        return packed[0].manifest.num_bytes

    def _pack(self, number: int) -> tuple[list[Packed], Version]:
        """Runs on the compute door."""
        new = version_of(number, self._learner.snapshot())
        tokens = self._environment.prompt(0)
        canary = Canary(tokens, tuple(self._learner.score(tokens))) if len(tokens) > 1 else None
        return self.chain.pack(new, self._published.version, canary), new

    def _remember(self, version: Version) -> None:
        self._published.version, self._published.drift = version, 0.0
        if self._auditor is not None:
            oldest = version.number - self._config.staleness_max - self._config.publish.steps_per_version
            self._published.recent[version.number] = version
            recent = self._published.recent
            self._published.recent = {number: one for number, one in recent.items() if number >= oldest}

    # Computing

    async def _compute(
        self, mailbox: Mailbox, function: Callable[..., Any], *arguments: object, seconds: float = 0.0
    ) -> Any:
        result = await self._computed(mailbox, function, *arguments, seconds=seconds)
        if isinstance(result, Failed):
            raise result.error
        return result

    async def _computed(
        self, mailbox: Mailbox, function: Callable[..., Any], *arguments: object, seconds: float = 0.0
    ) -> Any:
        """What `function` returns, or `Failed`; what came into the mailbox meanwhile needs no answer."""

        def done(result: object) -> None:
            mailbox.deliver(mailbox.address, _Computed(result))

        self._world.compute.submit(done, function, *arguments, seconds=seconds)
        while True:
            received = await mailbox.receive(float("inf"))
            if received is not None and isinstance(received[1], _Computed):
                return received[1].result

    def _note(self, sentence: str) -> None:
        self._world.note(TRAINER_ACTOR, sentence)
