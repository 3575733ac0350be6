"""What a worker alone has, kept over crashes: its newest update, what codecs left out of it, its optimizer's memory.

It is written down before the update is sent for the first time. Invariant: what was left out is owed to the next update
only, so it is taken up again only if no later update than the one it belongs to has reached the server.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch

from farflung.learn.parameters import Tensors
from farflung.systems.hierarchy.memory import Memory
from farflung.systems.hierarchy.merge import decode_part, encode_part
from farflung.systems.hierarchy.messages import UpdateHeader
from farflung.wire.parts import Part, plan_of, views
from farflung.wire.tensor import WireTensor, decode_tensor, encode_tensor
from farflung.world.doors import World

TIME_SHARE_MAX = 0.1
"""Of a worker's time may go into writing; an update that would need more of it is not kept."""

Computing = Callable[..., Awaitable[Any]]
"""Runs a function with its arguments on the device."""


@dataclass(slots=True)
class Update:
    """An update as it is sent, and what goes with it."""

    lease: int
    """Under which it was sent first."""
    sequence: int
    header: UpdateHeader
    parts: list[bytes]
    owed: dict[int, Tensors] = field(default_factory=dict[int, Tensors])
    """By part: what the codec left out."""


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """The table of what lies in a slot."""

    slot: int
    layout: bytes
    lease: int
    sequence: int
    header: UpdateHeader
    owed: list[int]
    """Parts of which something is owed."""
    num_memory_parts: int
    values: dict[str, Any]
    """Of the memory."""


class Keeper:
    """One worker's corner of its node's store."""

    def __init__(
        self, world: World, name: str, layout: bytes, values_per_part: int, memory: Memory | None = None
    ) -> None:
        self._world = world
        self._store = world.store
        self._prefix = f"hierarchy-worker/{name}/"
        self._layout = layout
        self._values_per_part = values_per_part
        self._memory = memory
        self._slot = 0
        self._next_at = 0.0

    async def save(self, compute: Computing, update: Update) -> None:
        """Keep an update in place of the one before, whole or not at all.

        If writing takes too much time or the disk fails it is left; after a crash, what codecs left out is then lost.
        """
        began_at = self._world.clock.now()
        if began_at < self._next_at:
            return
        try:
            await self._save(compute, update, 1 - self._slot)
        except OSError as error:
            self._world.note("worker", f"update {update.sequence} is not kept, because the disk fails: {error}")
        ended_at = self._world.clock.now()
        self._next_at = ended_at + (ended_at - began_at) * (1 / TIME_SHARE_MAX - 1)

    async def _save(self, compute: Computing, update: Update, slot: int) -> None:
        self._write(slot, "update", update.parts)
        for index, tensors in update.owed.items():
            self._store.write(self._key(slot, "owed", index), await compute(_encode_owed, tensors))
        num_memory_parts, values = await self._save_memory(compute, slot)
        owed = list(update.owed)
        kept = _Kept(
            slot, self._layout, update.lease, update.sequence, update.header, owed, num_memory_parts, dict(values)
        )
        self._store.write(self._prefix + "kept", msgspec.msgpack.encode(kept))
        for key in self._store.keys(f"{self._prefix}{self._slot}/"):
            self._store.delete(key)
        self._slot = slot

    async def load(self, compute: Computing) -> Update | None:
        """The newest update that was kept, with the memory loaded; None if there is none.

        Raises:
            ValueError: it is of another model or optimizer.
        """
        data = self._store.read(self._prefix + "kept")
        if data is None:
            return None
        kept = msgspec.msgpack.decode(data, type=_Kept)
        if kept.layout != self._layout:
            raise ValueError("what this worker has kept is of another model: start it in an empty home")
        self._slot = kept.slot
        parts = [self._read(kept.slot, "update", index) for index in range(kept.header.num_parts)]
        owed = {index: _decode_owed(self._read(kept.slot, "owed", index)) for index in kept.owed}
        if self._memory is not None and kept.num_memory_parts:
            await compute(self._load_memory, kept)
        return Update(kept.lease, kept.sequence, kept.header, parts, owed)

    async def _save_memory(self, compute: Computing, slot: int) -> tuple[int, Mapping[str, Any]]:
        if self._memory is None:
            return 0, {}
        tensors, values = await compute(self._memory.state)
        plan = plan_of(tensors, self._values_per_part)
        for index, part in enumerate(plan):
            data = await compute(_encode_memory, tensors, part)
            self._store.write(self._key(slot, "memory", index), data)
        return len(plan), values

    def _load_memory(self, kept: _Kept) -> None:
        assert self._memory is not None
        now, _ = self._memory.state()
        tensors = {name: torch.empty(tensor.shape) for name, tensor in now.items()}
        plan = plan_of(tensors, self._values_per_part)
        if len(plan) != kept.num_memory_parts:
            raise ValueError("what this worker has kept is of another optimizer: start it in an empty home")
        for index, part in enumerate(plan):
            values = decode_part(self._read(kept.slot, "memory", index), part)
            for name, target in views(tensors, part).items():
                target.copy_(values[name])
        self._memory.load(tensors, kept.values)

    def _write(self, slot: int, what: str, parts: list[bytes]) -> None:
        for index, data in enumerate(parts):
            self._store.write(self._key(slot, what, index), data)

    def _read(self, slot: int, what: str, index: int) -> bytes:
        data = self._store.read(self._key(slot, what, index))
        assert data is not None, f"{what} {index} was kept and is missing"
        return data

    def _key(self, slot: int, what: str, index: int) -> str:
        return f"{self._prefix}{slot}/{what}/{index}"


def _encode_memory(tensors: Tensors, part: Part) -> bytes:
    values = {name: one.to(device="cpu", dtype=torch.float32) for name, one in views(tensors, part).items()}
    return encode_part(values, part)


def _encode_owed(tensors: Tensors) -> bytes:
    return msgspec.msgpack.encode({name: encode_tensor(values) for name, values in tensors.items()})


def _decode_owed(data: bytes) -> Tensors:
    coded = msgspec.msgpack.decode(data, type=dict[str, WireTensor])
    return {name: decode_tensor(values).clone() for name, values in coded.items()}
