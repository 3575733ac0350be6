"""The adapters that a block server holds for its clients, within a budget of bytes.

Invariants: an adapter's block is held whole and checked or not at all; what a session uses stays; of all else those
used longest ago give way. A client that trains has no more than its newest two versions here.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

from farflung.model.lowrank import Additions, BlockAdditions, LowRank
from farflung.model.span import Span
from farflung.systems.swarm.adapter_checks import check_factors, check_name, num_bytes_of
from farflung.systems.swarm.adapters import decode_factors, digest_of
from farflung.systems.swarm.checks import Limits
from farflung.systems.swarm.messages import AdapterHanded, HandAdapter
from farflung.wire.tensor import MalformedTensor
from farflung.world.address import Address, PeerId
from farflung.world.doors import Failed
from farflung.world.effects import Effect, Run, Send

BLOCK_BYTES = 1024
"""What a block takes beside its factors: one without any is not for nothing."""
NUM_VERSIONS_MAX = 2
"""Of an adapter in training, per client: one in use and its next."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterJob:
    """A part of an adapter is being read and checked."""

    source: Address
    part: HandAdapter


@dataclass(slots=True)
class _Held:
    trainer: PeerId | None
    """Whose passing version it is."""
    num_bytes: int = 0
    """Of the blocks that are here, and of those being read."""
    num_reading: int = 0
    """Parts that are being read."""
    blocks: dict[int, BlockAdditions] = field(default_factory=dict[int, BlockAdditions])
    views: dict[tuple[int, int], Additions] = field(default_factory=dict[tuple[int, int], Additions])
    """What was found before: one object for all sessions, so that they are computed together."""


class AdapterStore:
    """Adapters by name, the one used longest ago first."""

    def __init__(self, num_bytes_max: int, limits: Limits) -> None:
        self._num_bytes_max = num_bytes_max
        self._limits = limits
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def num_bytes(self) -> int:
        """Memory that adapters take or are about to."""
        return sum(held.num_bytes for held in self._held.values())

    def find(self, name: str, first: int, last: int) -> Additions | None:
        """What the adapter adds in blocks [first, last); None if not all of that is here."""
        held = self._held.get(name)
        if held is None:
            return None
        self._held.move_to_end(name)
        if (first, last) not in held.views:
            if not all(block in held.blocks for block in range(first, last)):
                return None
            held.views[first, last] = {block: held.blocks[block] for block in range(first, last)}
        return held.views[first, last]

    def take(self, source: Address, part: HandAdapter, span: Span, in_use: Callable[[], Collection[str]]) -> Effect:
        """Have a part read, or the answer: it is here already, it is wrong, or there is no room for it. `in_use`:
        names of adapters that must stay."""
        problem = check_name(part)
        if problem is None and not span.first <= part.first < part.last <= span.last:
            return Send(source, _answer(part, f"this server holds blocks {span.first}:{span.last}"))
        problem = problem or check_factors(part, span.layer_sizes, self._limits)
        if problem is not None:
            return Send(source, _answer(part, problem, is_fault_of_client=True))
        if self.find(part.adapter, part.first, part.last) is not None:
            return Send(source, _answer(part))
        num_bytes = _cost(part)
        if part.is_passing:
            self._drop_versions(source.peer, part.adapter, in_use())
        if not self._make_room(num_bytes, part.adapter, in_use):
            reason = f"{num_bytes} bytes more are over the {self._num_bytes_max} that this server has for adapters"
            return Send(source, _answer(part, reason))
        held = self._held.setdefault(part.adapter, _Held(source.peer if part.is_passing else None))
        held.num_bytes += num_bytes
        held.num_reading += 1
        if not part.is_passing:
            held.trainer = None
        return Run(AdapterJob(source, part), read_part, (part, span.device), 0.0)

    def finished(self, job: AdapterJob, result: object) -> list[Effect]:
        """Keep what was read, and say so."""
        part, held = job.part, self._held[job.part.adapter]
        held.num_reading -= 1
        if isinstance(result, dict):
            # What came again while it was being read is counted once.
            held.num_bytes -= sum(_num_bytes(held.blocks[block]) for block in result if block in held.blocks)
            held.blocks.update(result)
            return [Send(job.source, _answer(part))]
        held.num_bytes -= _cost(part)
        if not held.num_bytes:
            del self._held[part.adapter]
        if isinstance(result, Failed):
            return [Send(job.source, _answer(part, f"it could not be read: {result.error}"))]
        return [Send(job.source, _answer(part, str(result), is_fault_of_client=True))]

    def _make_room(self, num_bytes: int, name: str, in_use: Callable[[], Collection[str]]) -> bool:
        if num_bytes > self._num_bytes_max:
            return False
        kept = {name, *in_use()} if self.num_bytes + num_bytes > self._num_bytes_max else {name}
        while self.num_bytes + num_bytes > self._num_bytes_max:
            oldest = next(
                (each for each, held in self._held.items() if each not in kept and not held.num_reading), None
            )
            if oldest is None:
                return False
            del self._held[oldest]
        return True

    def _drop_versions(self, trainer: PeerId, name: str, in_use: Collection[str]) -> None:
        """Of a client in training, all but its newest versions."""
        older = [each for each, held in self._held.items() if held.trainer == trainer and each != name]
        for each in older[: max(0, len(older) + 1 - NUM_VERSIONS_MAX)]:
            if each not in in_use and not self._held[each].num_reading:
                del self._held[each]


def read_part(part: HandAdapter, device: torch.device) -> dict[int, dict[str, LowRank]] | str:
    """The factors on the span's device, or why they are not what their name says."""
    try:
        blocks = decode_factors(part.factors, part.first, part.last)
    except MalformedTensor as error:
        return str(error)
    for number, block in blocks.items():
        if digest_of(block) != part.digests[number]:
            return f"the factors of block {number} are not those of the adapter's name"
    return {
        number: {name: LowRank(each.inner_RI.to(device), each.outer_OR.to(device)) for name, each in block.items()}
        for number, block in blocks.items()
    }


def _num_bytes(block: BlockAdditions) -> int:
    return BLOCK_BYTES + sum(each.bytes for each in block.values())


def _cost(part: HandAdapter) -> int:
    return num_bytes_of(part) + BLOCK_BYTES * (part.last - part.first)


def _answer(part: HandAdapter, reason: str = "", *, is_fault_of_client: bool = False) -> AdapterHanded:
    return AdapterHanded(
        adapter=part.adapter,
        first=part.first,
        last=part.last,
        reason=reason,
        is_fault_of_client=is_fault_of_client,
    )
