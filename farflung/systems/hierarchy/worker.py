"""A worker (HALoS, Algorithm 1): local steps from its server's model, the difference to the server, and again.

Its inner optimizer keeps its moments throughout and never shares them. Schedules follow the global progress of the run,
so that a worker with an old model does not lag behind in them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from farflung.learn.learner import Learner
from farflung.learn.parameters import Tensors, assign_
from farflung.systems.hierarchy.adapting import UplinkCodec
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.data import Data
from farflung.systems.hierarchy.keeping import Keeper, Update
from farflung.systems.hierarchy.memory import Memory
from farflung.systems.hierarchy.merge import compress_part, decode_part, layout, part_bytes
from farflung.systems.hierarchy.messages import Alive, ModelHeader, ModelPart, RunIdentity, UpdateHeader, Welcome
from farflung.systems.hierarchy.pace import smoothed_speed
from farflung.systems.hierarchy.report import WorkerReport
from farflung.systems.hierarchy.uplink import Phase, Uplink
from farflung.wire.parts import plan_of, views
from farflung.wire.tensor import MalformedTensor
from farflung.world.address import Address
from farflung.world.doors import Failed, World
from farflung.world.effects import Effect, Note, Send
from farflung.world.errors import PeerMisbehaved, Refused
from farflung.world.mailbox import Mailbox, PeerLost
from farflung.world.version import __version__


@dataclass(frozen=True, slots=True)
class Computed:
    """A computation is done; stands in the mailbox among the messages."""

    result: object


class Worker:
    """One worker's life. `await run()`, in the process that computes."""

    def __init__(
        self,
        world: World,
        config: HierarchyConfig,
        learner: Learner,
        *,
        name: str,
        server: Address,
        data: Data | None = None,
        memory: Memory | None = None,
        speed: float = 0.0,
        seconds_per_step: float = 0.0,
    ) -> None:
        """`server`: the local server. `memory`: of the optimizer, to outlive crashes. `speed`: steps per second, 0 to
        measure it. `seconds_per_step`: what the simulator charges for a step. `data` is needed if the servers deal
        shards (`config.num_shards`)."""
        assert data is not None or not config.num_shards, "servers that deal shards need workers that take them"
        self._world = world
        self._config = config
        self._learner = learner
        self._data = data
        self._is_measured = not speed
        self._seconds_per_step = seconds_per_step
        self._start = {
            name: torch.zeros(tensor.shape, dtype=torch.float32) for name, tensor in learner.parameters.items()
        }
        self._parts = plan_of(self._start, config.values_per_part)
        self._owed: dict[int, Tensors] = {}
        """By part: what the codec left out of the updates so far."""
        self._pending: list[bytes] = []
        """Parts of the update whose fate is not known."""
        random = world.random(f"joining as {name}")
        self._uplink = Uplink(
            config,
            RunIdentity(__version__, config.fingerprint, layout(self._start)),
            name,
            server,
            len(self._parts),
            part_bytes=part_bytes(self._parts),
            new_instance=lambda: f"{random.getrandbits(64):016x}",
            send_part=lambda index: [self._uplink.part(index, self._pending[index])],
            take_part=self._take_part,
        )
        self._uplink.speed = speed
        self._keeper = Keeper(world, name, layout(self._start), config.values_per_part, memory)
        self._resumed: Update | None = None
        """Of an earlier life; its fate is not known."""
        self._num_sent_before = 0
        self._sent: UpdateHeader | None = None
        """Of the newest update."""
        self.codec = UplinkCodec(
            config.codec_up_local,
            config.wire_share_max,
            self._start,
            lambda: world.network.bytes_per_second(server.peer),
        )
        self._is_settled = False
        self._lease_of_data = 0
        self._shard = -1
        self._num_steps = self._num_tokens = 0
        self._loss = 0.0
        self._seconds_computing = self._seconds_waiting = 0.0

    @property
    def name(self) -> str:
        return self._uplink.name

    def report(self) -> WorkerReport:
        """What it has come to."""
        model = self._uplink.model
        is_own = self._resumed is None or self._uplink.sequence > self._resumed.sequence
        pending = self._uplink.header.num_steps if self._uplink.header is not None and is_own else 0
        return WorkerReport(
            num_steps=self._num_steps,
            num_steps_taken=self._num_steps - pending,
            num_updates=self._uplink.num_taken - self._num_sent_before,
            newest_update=self._uplink.sequence - (self._uplink.header is not None),
            num_tokens=self._num_tokens,
            version=model.version if model else 0,
            global_steps=model.global_steps if model else 0,
            loss=self._loss,
            seconds_computing=self._seconds_computing,
            seconds_waiting=self._seconds_waiting,
            is_over=model is not None and model.is_over,
        )

    async def run(self) -> WorkerReport:
        """Work until the run is over; the learner then holds the last model that the server sent.

        Raises:
            Refused: the server will not have this worker, or not take its update.
        """
        with Mailbox(self._world, f"worker-{self.name}") as mailbox:
            await self._resume(mailbox)
            self._perform(mailbox, self._uplink.join(self._now()))
            while not (model := await self._next_model(mailbox)).is_over:
                header = await self._descend(mailbox, model)
                update = Update(self._uplink.lease, self._uplink.sequence + 1, header, self._pending, self._owed)
                await self._keeper.save(partial(self._compute, mailbox), update)
                self._sent = header
                self._perform(mailbox, self._uplink.upload(update.sequence, header, self._now()))
            return self.report()

    async def _resume(self, mailbox: Mailbox) -> None:
        """Take up what an earlier life has kept."""
        update = self._resumed = await self._keeper.load(partial(self._compute, mailbox))
        if update is not None:
            self._pending, self._owed, self._sent = update.parts, update.owed, update.header
            self._uplink.lease, self._uplink.sequence = update.lease, update.sequence
            self._uplink.header = update.header

    def _settle(self, newest: int) -> None:
        """The server's newest update of this worker is known: is it the one that was taken up?"""
        if self._resumed is not None and newest >= self._resumed.sequence:
            self._num_sent_before = 1
            if newest > self._resumed.sequence:
                self._owed = {}  # it was in an update after that one
        self._uplink.sequence = max(self._uplink.sequence, newest)
        self._is_settled = True

    # Learning

    async def _next_model(self, mailbox: Mailbox) -> ModelHeader:
        """Wait for the server's answer and put its model into the learner."""
        begun_at = self._now()
        while self._uplink.phase is not Phase.IDLE:
            await self._hear(mailbox)
        self._seconds_waiting += self._now() - begun_at
        await self._compute(mailbox, assign_, self._learner.parameters, self._start)
        model, welcome = self._uplink.model, self._uplink.welcome
        assert model is not None and welcome is not None
        if not self._is_settled:
            self._settle(welcome.newest)
        if self._data is not None and welcome.shard >= 0 and welcome.lease != self._lease_of_data:
            self._lease_of_data, self._shard = welcome.lease, welcome.shard
            self._data.assign(welcome.shard, self._cursor_after(welcome))
        return model

    def _cursor_after(self, welcome: Welcome) -> dict[str, int]:
        """Where the data go on: behind an update that was sent after the server had said where they did."""
        sent = self._sent
        if sent is None or sent.shard != welcome.shard or welcome.newest >= self._uplink.sequence:
            return welcome.cursor
        return sent.cursor

    async def _descend(self, mailbox: Mailbox, model: ModelHeader) -> UpdateHeader:
        """Make local steps and encode what they changed."""
        begun_at, num_steps, budget = self._now(), model.num_local_steps, self._config.budget_steps

        def progress(step: int) -> float:
            return min(1.0, (model.global_steps + step + 1) / budget)

        seconds = num_steps * self._seconds_per_step
        descended = await self._compute(mailbox, self._learner.run, num_steps, progress, seconds=seconds)
        if self._is_measured:
            self._uplink.speed = smoothed_speed(self._uplink.speed, num_steps, self._now() - begun_at)
        codec, notes = self.codec.choose(self._now() - begun_at)
        self._perform(mailbox, notes)
        self._pending = await self._compute(mailbox, self._encode, codec)
        self._num_steps += num_steps
        self._num_tokens += descended.num_tokens
        # Steps whose gradients were not finite are left out; if all of them were, there is no loss to tell.
        self._loss = descended.loss if math.isfinite(descended.loss) else self._loss
        self._seconds_computing += self._now() - begun_at
        return UpdateHeader(
            num_parts=len(self._parts),
            num_steps=num_steps,
            num_tokens=descended.num_tokens,
            base_version=model.version,
            base_dispatch=self._uplink.held,
            loss=self._loss,
            speed=self._uplink.speed,
            shard=self._shard,
            cursor=dict(self._data.cursor) if self._data is not None else {},
        )

    @torch.no_grad()
    def _encode(self, codec: str) -> list[bytes]:
        """d = theta_0 - theta_H, part by part."""
        parts: list[bytes] = []
        for index, part in enumerate(self._parts):
            start, end = views(self._start, part), views(self._learner.parameters, part)
            delta = {name: start[name] - end[name].to(device="cpu", dtype=torch.float32) for name in start}
            data, self._owed[index] = compress_part(delta, self._owed.get(index, {}), part, codec)
            parts.append(data)
        return parts

    async def _compute(
        self, mailbox: Mailbox, function: Callable[..., Any], *arguments: object, seconds: float = 0.0
    ) -> Any:
        """Run `function` on the device; meanwhile the server hears that this worker is alive."""

        def done(result: object) -> None:
            mailbox.deliver(mailbox.address, Computed(result))

        self._world.compute.submit(done, function, *arguments, seconds=seconds)
        while (computed := await self._hear(mailbox)) is None:
            pass
        if isinstance(computed.result, Failed):
            raise computed.result.error
        return computed.result

    # Talking

    async def _hear(self, mailbox: Mailbox) -> Computed | None:
        """Take the next message, or do what is due when none comes; returns a computation's result if it is one."""
        deadline = min(self._uplink.ask_at, self._now() + self._config.alive_seconds)
        received = await mailbox.receive(deadline)
        if received is None:
            effects = self._uplink.wake(self._now())
            if self._uplink.phase is Phase.IDLE:
                effects = [Send(self._uplink.server, Alive(name=self.name, lease=self._uplink.lease))]
            self._perform(mailbox, effects)
            return None
        source, message = received
        match message:
            case Computed():
                return message
            case PeerLost(peer=peer):
                self._uplink.lost(peer, self._now())
            case _:
                self._perform(mailbox, self._uplink.receive(source, message, self._now()))
        if self._uplink.refused is not None:
            raise Refused(self._uplink.server.peer, self._uplink.refused)
        return None

    def _take_part(self, part: ModelPart) -> list[Effect]:
        planned = self._parts[part.index]
        try:
            values = decode_part(part.slices, planned)
        except MalformedTensor as error:
            raise PeerMisbehaved(self._uplink.server.peer, f"it sent a model with {error}") from None
        for name, target in views(self._start, planned).items():
            if part.header.reference:
                target.add_(values[name])
            else:
                target.copy_(values[name])
        return []

    def _perform(self, mailbox: Mailbox, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(destination, message):
                    mailbox.send(destination, message)
                case Note(sentence):
                    self._world.note(mailbox.actor, sentence)
                case _:
                    raise AssertionError(f"a worker does not perform {effect}")

    def _now(self) -> float:
        return self._world.clock.now()
