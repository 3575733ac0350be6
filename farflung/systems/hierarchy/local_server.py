"""The local parameter server (HALoS, LPS): updates of a region's workers in, a push upward K updates after each merge.

    worker --d--> DN_l.step(theta, d); ver += 1 --theta--> worker
                  if ver == merged_ver + K: D = snapshot - theta  --D--> global server
    global server --theta_g--> theta = (1 - alpha) theta + alpha theta_g; snapshot = theta; merged_ver = ver

Without a server above it, it is asynchronous local SGD. Invariant: at most one push is under way, and each is applied
above once, also when this server dies and its journal derives the push again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from farflung.systems.hierarchy.adapting import UplinkCodec
from farflung.systems.hierarchy.config import ABSOLUTE_CODECS, HierarchyConfig
from farflung.systems.hierarchy.dispatcher import first_dispatch
from farflung.systems.hierarchy.durable import Kept, above_key, model_key, owed_key, push_key, snapshot_key
from farflung.systems.hierarchy.merge import ServedModel, decode_part, layout, part_bytes
from farflung.systems.hierarchy.messages import ModelHeader, ModelPart, RunIdentity, UpdateHeader
from farflung.systems.hierarchy.records import Leased, Merged
from farflung.systems.hierarchy.server import Server
from farflung.systems.hierarchy.state import keys_of, push_keys
from farflung.systems.hierarchy.uplink import Phase, Uplink
from farflung.systems.hierarchy.work import Compute, Read, Work
from farflung.wire.tensor import MalformedTensor
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.effects import Delete, Effect, Load, Save, WakeAt
from farflung.world.errors import PeerMisbehaved
from farflung.world.version import __version__


@dataclass(frozen=True, slots=True)
class PushJob:
    """A part of a push that is read from disk to be sent."""

    number: int
    index: int


class LocalServer(Server):
    """One region's server."""

    def __init__(
        self,
        config: HierarchyConfig,
        parameters: Mapping[str, torch.Tensor],
        kept: Kept,
        *,
        name: str,
        above: Address | None,
        new_instance: Callable[[], str],
        first_dispatch: int,
        shards: Sequence[int] | None = None,
        update_seconds: float = 0.0,
        bytes_per_second: Callable[[], float | None] = lambda: None,
    ) -> None:
        """`above`: the global server; None: there is none. `shards`: of the data, this region's (default: all).
        `bytes_per_second()`: bandwidth seen towards the global server.

        Raises:
            ValueError: what was kept is of another model.
        """
        model = ServedModel(parameters, config.local_rule, config.values_per_part)
        run = RunIdentity(__version__, config.fingerprint, layout(parameters))
        super().__init__(
            config,
            run,
            model,
            kept,
            codec_down=config.codec_down_local,
            shards=range(config.num_shards) if shards is None else shards,
            first_dispatch=first_dispatch,
            update_seconds=update_seconds,
        )
        self._keeps_above = config.codec_down_global not in ABSOLUTE_CODECS
        self._owes = config.codec_up_global != "raw"
        self._now = 0.0
        self._wake_at = float("inf")
        self._merged_at = 0.0
        self.codec_push = UplinkCodec(config.codec_up_global, config.wire_share_max, model.parameters, bytes_per_second)
        self.uplink: Uplink | None = None
        if above is not None:
            self.uplink = Uplink(
                config,
                run,
                name,
                above,
                model.num_parts,
                part_bytes=part_bytes(model.parts),
                new_instance=new_instance,
                send_part=self._send_push_part,
                take_part=self._take_model_part,
                lease=self.state.lease,
            )

    @classmethod
    def open(
        cls,
        world: World,
        config: HierarchyConfig,
        parameters: Mapping[str, torch.Tensor],
        *,
        name: str,
        above: Address | None,
        shards: Sequence[int] | None = None,
    ) -> "LocalServer":
        """With what its node's disk holds of an earlier life."""
        random = world.random("joining")
        return cls(
            config,
            parameters,
            Kept.read(world),
            name=name,
            above=above,
            new_instance=lambda: f"{random.getrandbits(64):016x}",
            first_dispatch=first_dispatch(world),
            shards=shards,
            bytes_per_second=lambda: None if above is None else world.network.bytes_per_second(above.peer),
        )

    @property
    def is_ready(self) -> bool:
        return self.uplink is None or self.state.counters.has_model

    # Events: those of the uplink go to it, all others to the side that faces the workers

    def start(self, now: float) -> Sequence[Effect]:
        self._now = now
        effects = super().start(now)
        if self.uplink is None:
            return effects
        return self._armed([*effects, *self.state.queue.push(self._contact())])

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        self._now = now
        if self.uplink is None or source != self.uplink.server:
            return self._armed(super().receive(source, message, now))
        before = self.uplink.model
        effects = self.uplink.receive(source, message, now)
        if self.uplink.lease != self.state.lease:
            # Before anything is sent under it: an update that a restart sends again must name the lease it had.
            self.state.lease = self.uplink.lease
            effects = [*self.state.record(Leased(self.state.ledger.num_records + 1, self.state.lease)), *effects]
        if self.uplink.model is not None and self.uplink.model is not before:
            effects += self._model_arrived(self.uplink.model)
        return self._armed(effects)

    def finished(self, job: object, result: object, now: float) -> Sequence[Effect]:
        self._now = now
        if isinstance(job, PushJob):
            return self._send_loaded(job, result)
        return self._armed(super().finished(job, result, now))

    def wake(self, now: float) -> Sequence[Effect]:
        self._now, self._wake_at = now, float("inf")
        return self._armed(self.uplink.wake(now) if self.uplink is not None else ())

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        if self.uplink is not None:
            self.uplink.lost(peer, now)
        return self._armed(super().lost(peer, reason, now))

    def _armed(self, effects: Sequence[Effect]) -> Sequence[Effect]:
        """The effects, and a wake for when the server above has been silent for too long."""
        if self.uplink is None or self.uplink.ask_at >= self._wake_at:
            return effects
        self._wake_at = self.uplink.ask_at
        return [*effects, WakeAt(self._wake_at)]

    # Upward

    def _contact(self) -> Work:
        """Take up with the server above where the state, now restored, left off."""
        counters = self.state.counters
        assert self.uplink is not None
        effects: list[Effect] = []
        if not counters.has_model:
            effects = self.uplink.join(self._now)
        elif counters.num_pushes > counters.merged_push:
            assert counters.push_header is not None
            effects = self.uplink.upload(counters.num_pushes, counters.push_header, self._now)
        yield from effects

    def _after_update(self, *, is_live: bool) -> Work:
        if self.uplink is None:
            yield from super()._after_update(is_live=is_live)
            return
        counters = self.state.counters
        if counters.version != counters.merged_version + self.config.updates_per_push or counters.is_over:
            return
        counters.num_pushes += 1
        number = counters.num_pushes
        yield from self._encode_push(number)
        num_steps = counters.num_steps - counters.pushed_steps
        counters.push_header = UpdateHeader(
            num_parts=self.state.model.num_parts,
            num_steps=num_steps,
            num_tokens=counters.num_tokens - counters.pushed_tokens,
            base_version=counters.above_version,
            base_dispatch=counters.above_dispatch,
            loss=counters.loss_sum / num_steps,
            speed=self.state.ledger.speed_max(),
            shard=-1,
            cursor={},
        )
        counters.pushed_steps, counters.pushed_tokens = counters.num_steps, counters.num_tokens
        counters.loss_sum = 0.0
        if is_live:
            yield from self.uplink.upload(number, counters.push_header, self._now)

    def _encode_push(self, number: int) -> Work:
        """D = snapshot - theta, with what the push before left out."""
        model, codec, merged = self.state.model, self.state.counters.codec_push, self.state.counters.merged_push
        for index in range(model.num_parts):
            snapshot = yield Read(snapshot_key(merged, index))
            owed = (yield Read(owed_key(number - 1, index))) if self._owes and number > 1 else None
            data, owed = yield Compute(model.push_part, (index, snapshot, owed, codec))
            yield Save(push_key(number, index), data)
            if self._owes:
                yield Save(owed_key(number, index), owed)
        if self._owes:
            self.state.cover([owed_key(number - 1, index) for index in range(model.num_parts)])

    def _send_push_part(self, index: int) -> list[Effect]:
        assert self.uplink is not None
        job = PushJob(self.uplink.sequence, index)
        return [Load(job, push_key(job.number, index))]

    def _send_loaded(self, job: PushJob, data: object) -> Sequence[Effect]:
        assert self.uplink is not None
        if self.uplink.phase is not Phase.UPLOAD or self.uplink.sequence != job.number:
            return ()
        assert isinstance(data, bytes), "a part of a push that is under way is missing"
        return [self.uplink.part(job.index, data)]

    # Downward

    def _take_model_part(self, part: ModelPart) -> list[Effect]:
        assert self.uplink is not None
        try:
            decode_part(part.slices, self.state.model.parts[part.index])
        except MalformedTensor as error:
            raise PeerMisbehaved(self.uplink.server.peer, f"it sent a model with {error}") from None
        return [Save(model_key(self.state.counters.num_pushes, part.index), bytes(part.slices))]

    def _model_arrived(self, header: ModelHeader) -> list[Effect]:
        assert self.uplink is not None and header.reference in (0, self.state.counters.above_dispatch)
        codec, notes = self.codec_push.choose(self._now - self._merged_at)
        self._merged_at = self._now
        record = Merged(
            number=self.state.ledger.num_records + 1,
            push=self.state.counters.num_pushes,
            num_parts=header.num_parts,
            version=header.version,
            global_steps=header.global_steps,
            speed_max=header.speed_max,
            is_over=header.is_over,
            dispatch=self.uplink.held,
            base=self.state.counters.merged_push if header.reference else -1,
            codec_push=codec,
        )
        return [*notes, *self.state.record(record), *self.state.queue.push(self._merge(record, is_live=True))]

    def _merge(self, record: Merged, *, is_live: bool) -> Work:
        counters, weight = self.state.counters, self.config.merge_weight if record.push else 1.0
        num_bytes = 0
        for index, key in enumerate(keys_of(record)):
            data = yield Read(key)
            assert data is not None, f"{key} was received and is missing"
            num_bytes += len(data)
            base = (yield Read(above_key(record.base, index))) if record.base >= 0 else None
            snapshot, whole = yield Compute(self.state.model.merge_part, (index, data, base, weight))
            yield Save(snapshot_key(record.push, index), snapshot)
            if self._keeps_above:
                yield Save(above_key(record.push, index), whole)
        if counters.merged_push != record.push:
            for key_of in (snapshot_key, above_key) if self._keeps_above else (snapshot_key,):
                self.state.cover([key_of(counters.merged_push, index) for index in range(record.num_parts)])
        counters.merged_version, counters.merged_push = counters.version, record.push
        counters.merged_steps = counters.pushed_steps
        counters.above_dispatch = record.dispatch
        counters.above_version, counters.above_steps = record.version, record.global_steps
        counters.above_speed_max = max(counters.above_speed_max, record.speed_max)
        counters.is_over = counters.is_over or record.is_over
        counters.num_merges += record.push > 0
        counters.has_model = True
        counters.codec_push = record.codec_push
        self.state.applied(record, num_bytes)
        for key in push_keys(record.push, record.num_parts):
            yield Delete(key)
        if is_live:
            yield from self.state.save_if_due()
