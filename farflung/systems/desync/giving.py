"""A member hands its state to a newcomer, in parts that the newcomer asks for: both ends as state machines (no I/O)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from farflung.learn.parameters import Tensors
from farflung.systems.desync.messages import (
    SyncStateAsk,
    SyncStateHead,
    SyncStatePart,
    SyncStatePartAsk,
)
from farflung.systems.desync.snapshots import ReplicaState
from farflung.wire.tensor import MalformedTensor, decode_tensor, encode_tensor
from farflung.world.address import Address
from farflung.world.effects import Send
from farflung.world.errors import PeerMisbehaved

PARTS_IN_FLIGHT = 4
SNAPSHOTS_MAX = 2
"""A donor keeps so many; the oldest goes first."""


def parts_of(shapes: Mapping[str, tuple[int, ...]], values_max: int) -> list[tuple[str, int, int]]:
    """(name, first value, past the last) of every part, in order."""
    lengths = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    return [
        (name, first, min(first + values_max, length))
        for name, length in lengths.items()
        for first in range(0, length, values_max)
    ]


@dataclass(slots=True)
class Given:
    """One snapshot of a donor's state."""

    head: SyncStateHead
    tensors: Tensors


@dataclass(slots=True)
class Donor:
    """What a member gives to those who ask."""

    values_max: int
    given: dict[int, Given] = field(default_factory=dict[int, Given])
    num_snapshots: int = 0

    def offer(self, state: ReplicaState) -> SyncStateHead:
        """Keep a snapshot, and say what it is."""
        self.num_snapshots += 1
        shapes = {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}
        head = SyncStateHead(
            snapshot=self.num_snapshots,
            round=state.round,
            num_credited=state.num_credited,
            first=state.first,
            num_steps=state.num_steps,
            rule_steps=state.rule_steps,
            shapes=shapes,
            num_parts=len(parts_of(shapes, self.values_max)),
        )
        self.given[head.snapshot] = Given(head, state.tensors)
        while len(self.given) > SNAPSHOTS_MAX:
            del self.given[next(iter(self.given))]
        return head

    def part(self, ask: SyncStatePartAsk) -> SyncStatePart | None:
        """The part, unless the snapshot is gone."""
        given = self.given.get(ask.snapshot)
        if given is None or not 0 <= ask.index < given.head.num_parts:
            return None
        name, first, last = parts_of(given.head.shapes, self.values_max)[ask.index]
        tensor = encode_tensor(given.tensors[name].reshape(-1)[first:last])
        return SyncStatePart(snapshot=ask.snapshot, index=ask.index, name=name, offset=first, tensor=tensor)


class Fetch:
    """A newcomer's half: `is_done` once every part is here."""

    def __init__(self, donor: Address, like: Mapping[str, torch.Tensor], values_max: int) -> None:
        self._donor = donor
        self._values_max = values_max
        self.tensors: Tensors = {name: torch.empty_like(tensor) for name, tensor in like.items()}
        self.head: SyncStateHead | None = None
        self._missing: dict[int, tuple[str, int, int]] = {}

    @property
    def state(self) -> ReplicaState:
        """What was fetched, once it is complete."""
        assert self.head is not None and not self._missing
        head = self.head
        return ReplicaState(self.tensors, head.round, head.num_credited, head.first, head.rule_steps, head.num_steps)

    @property
    def is_done(self) -> bool:
        """Whether the state is complete."""
        return self.head is not None and not self._missing

    @property
    def num_missing(self) -> int:
        """Parts that have not come; -2 before anything has."""
        return len(self._missing) if self.head is not None else -2

    def start(self) -> list[Send]:
        """Ask for the first thing that is missing; also when nothing has come for a while."""
        if self.head is None:
            return [Send(self._donor, SyncStateAsk())]
        return [self._ask(index) for index in list(self._missing)[:PARTS_IN_FLIGHT]]

    def receive(self, source: Address, message: object) -> list[Send]:
        """Take what the donor sends.

        Raises:
            PeerMisbehaved: it does not fit this model.
        """
        if source != self._donor:
            return []
        match message:
            case SyncStateHead() if self.head is None:
                return self._begin(message)
            case SyncStatePart() if self.head is not None and message.snapshot == self.head.snapshot:
                return self._put(message)
            case _:
                return []

    def _begin(self, head: SyncStateHead) -> list[Send]:
        if head.shapes != {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}:
            raise PeerMisbehaved(self._donor.peer, "offers the state of another model or optimizer")
        self.head = head
        self._missing = dict(enumerate(parts_of(head.shapes, self._values_max)))
        return self.start()

    def _ask(self, index: int) -> Send:
        assert self.head is not None
        return Send(self._donor, SyncStatePartAsk(snapshot=self.head.snapshot, index=index))

    def _put(self, part: SyncStatePart) -> list[Send]:
        wanted = self._missing.get(part.index)
        if wanted is None:
            return []
        name, first, last = wanted
        try:
            values = decode_tensor(part.tensor)
            if part.name != name or values.shape != (last - first,) or values.dtype != self.tensors[name].dtype:
                raise MalformedTensor(f"part {part.index} of a state is {part.name[:80]!r} {tuple(values.shape)}")
        except MalformedTensor as error:
            raise PeerMisbehaved(self._donor.peer, str(error)) from None
        self.tensors[name].view(-1)[first:last] = values
        del self._missing[part.index]
        ahead = list(self._missing)[PARTS_IN_FLIGHT - 1 : PARTS_IN_FLIGHT]
        return [self._ask(index) for index in ahead]
